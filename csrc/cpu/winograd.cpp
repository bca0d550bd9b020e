// csc_native::winograd: a 3x3 convolution of channels_last images with the step's epilogue.
//
// Tiles are taken in blocks whose transforms stay in the second-level cache: input transform, then for a group of
// output channels at a time a product per point, output transform and epilogue, so that nothing but the images
// themselves touches memory.

#include "winograd.h"

namespace csc {
namespace {

// The transforms of a dictionary (K, M, 3, 3), contiguous; see WinogradDictionary. Both results have (side + 2)^2
// times the rounded up channels times the rounded up atoms.
void winograd_weights(Tensor dictionary, int64_t side, double scale, Tensor analysis, Tensor synthesis) {
  with_kernels(dictionary, side, [&]<typename Real>(const WinogradKernels<Real>& kernels) {
    const WinogradDictionary<Real> d{static_cast<const Real*>(dictionary.data_ptr()),
                                     static_cast<int>(dictionary.size(0)),
                                     static_cast<int>(dictionary.size(1)),
                                     static_cast<Real>(scale),
                                     static_cast<Real*>(analysis.data_ptr()),
                                     static_cast<Real*>(synthesis.data_ptr())};
    parallel_tasks((d.atoms + kernels.lanes - 1) / kernels.lanes, [&](int64_t i) {
      const int begin = static_cast<int>(i) * kernels.lanes;
      kernels.weights(d, begin, begin + kernels.lanes);
    });
  });
}

// The channels of one vector of floats.
int64_t winograd_lanes() { return chosen_kernels().winograd->single_2.lanes; }

template <typename Real>
struct Convolution {
  const WinogradKernels<Real>& kernels;
  const WinogradShape s;
  const Real* weights;
  WinogradEpilogue<Real> epilogue;
  const Tensor& input;
  const std::optional<Tensor>& addend;
  const Tensor& output;
  const std::optional<Tensor>& seconds;

  int64_t tiles() const { return static_cast<int64_t>(s.tiles()) * input.size(0); }

  int64_t block_tiles(int threads) const {
    const int64_t bytes = kernels.points * static_cast<int64_t>(sizeof(Real)) * (s.padded_inputs + kWinogradChannels);
    int64_t block = std::clamp<int64_t>(kWinogradBlockBytes / bytes, 4 * kernels.tile_block, 32 * kernels.tile_block);
    block = std::min(block, (tiles() + threads - 1) / threads);
    return round_up_to(block, kernels.tile_block);
  }

  void run() const {
    if (tiles() == 0) return;
    const int threads = static_cast<int>(torch::stable::get_num_threads());
    const int64_t block = block_tiles(threads), blocks = (tiles() + block - 1) / block;
    const int64_t groups = (s.outputs + kWinogradChannels - 1) / kWinogradChannels;
    // Threads share the tiles; where there are too few for all, the groups of outputs as well.
    const int64_t shares = std::min<int64_t>(blocks, threads), splits = std::min(groups, threads / shares);
    parallel_tasks(shares * splits, [&](int64_t task) {
      const int64_t share = task % shares, split = task / shares;
      const Scratch<Real> from(kernels.points * block * s.padded_inputs);
      const Scratch<Real> to(kernels.points * block * kWinogradChannels);
      Phases phases(seconds.has_value());
      for (int64_t b = blocks * share / shares; b < blocks * (share + 1) / shares; ++b)
        block_of_tiles(b * block, static_cast<int>(std::min(block, tiles() - b * block)), block, from.get(), to.get(),
                       groups * split / splits, groups * (split + 1) / splits, phases);
      phases.write(seconds, task);
    });
  }

  void block_of_tiles(int64_t first, int count, int64_t block, Real* from, Real* to, int64_t first_group,
                      int64_t last_group, Phases& phases) const {
    const int64_t from_stride = block * s.padded_inputs, to_stride = block * kWinogradChannels;
    const int64_t per_point = static_cast<int64_t>(s.padded_inputs) * s.padded_outputs;
    for (int i = 0; i < count; ++i) {
      const int64_t tile = first + i;
      kernels.transform_input(s, picture<Real>(input, tile / s.tiles()), s.inputs, static_cast<int>(tile % s.tiles()),
                              from + i * static_cast<int64_t>(s.padded_inputs), from_stride);
    }
    phases.next(0);
    for (int64_t group = first_group; group < last_group; ++group) {
      const int k = static_cast<int>(group) * kWinogradChannels;
      const int channels = std::min(kWinogradChannels, s.outputs - k);
      const Real* panels = weights + static_cast<int64_t>(k) * s.padded_inputs;
      for (int point = 0; point < kernels.points; ++point)
        kernels.multiply(from + point * from_stride, panels + point * per_point, round_up_to(count, kernels.tile_block),
                         s.padded_inputs, round_up_to(channels, kernels.lanes), to + point * to_stride);
      phases.next(1);
      WinogradEpilogue<Real> e = epilogue;
      if (e.threshold) e.threshold += k;
      for (int i = 0; i < count; ++i) {
        const int64_t tile = first + i, n = tile / s.tiles();
        if (addend) e.addend = channels_from(picture<Real>(*addend, n), k);
        kernels.transform_output(s, e, channels, to + i * static_cast<int64_t>(kWinogradChannels), to_stride,
                                 static_cast<int>(tile % s.tiles()), channels_from(picture<Real>(output, n), k));
      }
      phases.next(2);
    }
  }
};

// seconds: (threads, 3), float64, += the time in input transforms, products, and output transforms.
void winograd(Tensor input, Tensor weights, int64_t side, int64_t top, int64_t left, std::optional<Tensor> threshold,
              std::optional<Tensor> addend, bool relu, std::optional<Tensor> seconds, Tensor output) {
  with_kernels(input, side, [&]<typename Real>(const WinogradKernels<Real>& kernels) {
    WinogradEpilogue<Real> epilogue;
    epilogue.relu = relu;
    if (threshold) epilogue.threshold = static_cast<const Real*>(threshold->data_ptr());
    Convolution<Real>{kernels,
                      winograd_shape(kernels, input, output, top, left),
                      static_cast<const Real*>(weights.data_ptr()),
                      epilogue,
                      input,
                      addend,
                      output,
                      seconds}
        .run();
  });
}

}  // namespace
}  // namespace csc

STABLE_TORCH_LIBRARY_IMPL(csc_native, CPU, m) {
  m.impl("winograd", TORCH_BOX(&csc::winograd));
  m.impl("winograd_weights", TORCH_BOX(&csc::winograd_weights));
}

STABLE_TORCH_LIBRARY_IMPL(csc_native, CompositeExplicitAutograd, m) {
  m.impl("winograd_lanes", TORCH_BOX(&csc::winograd_lanes));
}

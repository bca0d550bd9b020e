// csc_native::winograd: a 3x3 convolution of channels_last images with the step's epilogue.
//
// Tiles are taken in blocks whose transforms stay in a cache: input transform, then for a group of output channels at a
// time a product per point, output transform and epilogue, so that nothing but the images themselves touches memory.

#include <atomic>

#include "winograd.h"

namespace csc {
namespace {

// Weights of more bytes than this are not found in a cache from one block of tiles to the next, and blocks are large.
constexpr int64_t kCachedWeights = 8 << 20, kLargeBlockBytes = 7 << 19;

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

  // A block stays in the second-level cache, unless the weights are more than any cache holds: they come from memory
  // for every block, and large blocks take longer than that.
  int64_t block_tiles(int threads) const {
    const int64_t bytes = kernels.points * static_cast<int64_t>(sizeof(Real)) * (s.padded_inputs + kWinogradChannels);
    const int64_t all = kernels.points * static_cast<int64_t>(sizeof(Real)) * s.padded_inputs * s.padded_outputs;
    const bool large = all > kCachedWeights;
    const int64_t fitting = (large ? kLargeBlockBytes : kWinogradBlockBytes) / bytes / kernels.tile_block;
    const int64_t most = std::clamp<int64_t>(fitting, large ? 1 : 4, 32) * kernels.tile_block;
    int64_t blocks = (tiles() + most - 1) / most;
    if (blocks < 4 * threads) blocks = (blocks + threads - 1) / threads * threads;
    return round_up_to((tiles() + blocks - 1) / blocks, kernels.tile_block);
  }

  void run() const {
    if (tiles() == 0) return;
    const int threads = static_cast<int>(torch::stable::get_num_threads());
    const int64_t block = block_tiles(threads), blocks = (tiles() + block - 1) / block;
    const int64_t groups = (s.outputs + kWinogradChannels - 1) / kWinogradChannels;
    // Threads share the tiles; where there are too few for all, the groups of outputs as well.
    const int64_t splits = std::min(groups, std::max<int64_t>(1, threads / blocks)), pieces = blocks * splits;
    // Taken one by one: processors are not equally fast, shared ones least of all.
    std::atomic<int64_t> next_piece = 0;
    parallel_tasks(std::min<int64_t>(pieces, threads), [&](int64_t task) {
      if (next_piece >= pieces) return;
      const Scratch<Real> from(kernels.points * winograd_stride<Real>(block, s.padded_inputs));
      const Scratch<Real> to(kernels.points * winograd_stride<Real>(block, kWinogradChannels));
      Phases phases(seconds.has_value());
      for (int64_t piece; (piece = next_piece.fetch_add(1, std::memory_order_relaxed)) < pieces;) {
        const int64_t first = piece / splits * block, split = piece % splits;
        block_of_tiles(first, static_cast<int>(std::min(block, tiles() - first)), block, from.get(), to.get(),
                       groups * split / splits, groups * (split + 1) / splits, phases);
      }
      phases.write(seconds, task);
    });
  }

  void block_of_tiles(int64_t first, int count, int64_t block, Real* from, Real* to, int64_t first_group,
                      int64_t last_group, Phases& phases) const {
    const int64_t from_stride = winograd_stride<Real>(block, s.padded_inputs);
    const int64_t to_stride = winograd_stride<Real>(block, kWinogradChannels);
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

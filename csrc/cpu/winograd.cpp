// csc_native::winograd: a 3x3 convolution of channels_last images with the step's epilogue.
//
// Tiles are taken in blocks whose transforms stay in a cache: input transform, then for a group of output channels at a
// time a product per point, output transform and epilogue, so that nothing but the images themselves touches memory.

#include "winograd.h"

namespace csc {
namespace {

// Weights of more bytes than this are not found in a cache from one block of tiles to the next, and blocks are large.
constexpr int64_t kCachedWeights = 8 << 20, kLargeBlockBytes = 7 << 19;

// Outputs of fewer bytes stay in the caches, for whoever reads them next; with more, what is read beside them would
// drive them out.
constexpr int64_t kStreamedBytes = 4 << 20;

// The transforms of a dictionary (K, M, 3, 3), contiguous; see WinogradDictionary. Both results have (side + 2)^2
// times the rounded up channels times the rounded up atoms.
void winograd_weights(Tensor dictionary, int64_t side, double scale, Tensor analysis, Tensor synthesis) {
  with_convolution(dictionary, side, [&]<typename Stored>(const WinogradKernels<Stored>& kernels) {
    const WinogradDictionary<Stored> d{static_cast<const Stored*>(dictionary.data_ptr()),
                                       static_cast<int>(dictionary.size(0)),
                                       static_cast<int>(dictionary.size(1)),
                                       static_cast<RealOf<Stored>>(scale),
                                       static_cast<Stored*>(analysis.data_ptr()),
                                       static_cast<Stored*>(synthesis.data_ptr())};
    parallel_tasks((d.atoms + kernels.lanes - 1) / kernels.lanes, [&](int64_t i) {
      const int begin = static_cast<int>(i) * kernels.lanes;
      kernels.weights(d, begin, begin + kernels.lanes);
    });
  });
}

// Whether bfloat16 has kernels here, with tiles of 2 x 2.
bool winograd_bfloat16() { return bfloat16_kernels() != nullptr; }

// The channels of one vector of floats.
int64_t winograd_lanes() { return chosen_kernels().winograd->single_2.lanes; }

template <typename Stored>
struct Convolution {
  typedef RealOf<Stored> Real;

  const WinogradKernels<Stored>& kernels;
  const WinogradShape s;
  const Stored* weights;
  WinogradEpilogue<Stored> epilogue;
  const Pictures<Stored> inputs, addends, outputs;
  const Tensor& output;
  const std::optional<Tensor>& seconds;

  int64_t tiles() const { return s.tiles * output.size(0); }

  // A block stays in the second-level cache, unless the weights are more than any cache holds: they come from memory
  // for every block, and large blocks take longer than that.
  int64_t block_tiles(int threads) const {
    const int64_t bytes =
        kernels.points * (int64_t{sizeof(Stored)} * s.padded_inputs + sizeof(Real) * kWinogradChannels);
    const int64_t all = kernels.points * int64_t{sizeof(Stored)} * s.padded_inputs * s.padded_outputs;
    const bool large = all > kCachedWeights;
    const int64_t fitting = (large ? kLargeBlockBytes : kWinogradBlockBytes) / bytes / kernels.tile_block;
    const int64_t most = std::clamp<int64_t>(fitting, large ? 1 : 4, 32) * kernels.tile_block;
    int64_t blocks = (tiles() + most - 1) / most;
    if (blocks < 4 * threads) blocks = (blocks + threads - 1) / threads * threads;
    return round_up_to((tiles() + blocks - 1) / blocks, kernels.tile_block);
  }

  // Large outputs of pixels that are whole cache lines go around the caches, where a vector is a line: parts of lines,
  // of which each tile leaves several open, take longer than reading what they overwrite.
  bool streams() const {
    return output.numel() * int64_t{sizeof(Stored)} >= kStreamedBytes && is_aligned(output, 64 / sizeof(Stored)) &&
           kernels.lanes * sizeof(Stored) >= 64;
  }

  void run() const {
    if (tiles() == 0) return;
    const int threads = static_cast<int>(torch::stable::get_num_threads());
    const int64_t block = block_tiles(threads), blocks = (tiles() + block - 1) / block;
    const int64_t groups = (s.outputs + kWinogradChannels - 1) / kWinogradChannels;
    // Threads share the tiles; where there are too few for all, the groups of outputs as well.
    const int64_t splits = std::min(groups, std::max<int64_t>(1, threads / blocks)), pieces = blocks * splits;
    const auto part = [&](int64_t piece) {
      const int64_t first = piece / splits * block;
      return Part{first, std::min(block, tiles() - first), Slice(groups, piece % splits, splits)};
    };
    Pieces queue(pieces);
    queue.share([&](int64_t task) {
      const Scratch<Stored> from(kernels.points * winograd_stride<Stored>(block, s.padded_inputs));
      const Scratch<Real> to(kernels.points * winograd_stride<Real>(block, kWinogradChannels));
      Phases phases(seconds.has_value());
      for (int64_t piece = queue.take(), next; piece < pieces; piece = next) {
        const bool early = queue.has_plenty();
        next = early ? queue.take() : pieces;
        compute(part(piece), next < pieces ? part(next) : Part{0, 0, {0, 0, 1}}, block, from.get(), to.get(), phases);
        if (!early) next = queue.take();
      }
      if (epilogue.stream) chosen_kernels().streamed();
      phases.write(seconds, task);
    });
  }

  // Tiles from `first` on, and groups of outputs.
  struct Part {
    int64_t first, count;
    Slice groups;
  };

  int position(int64_t tile) const { return static_cast<int>(tile % s.tiles); }

  void compute(const Part& part, const Part& next, int64_t block, Stored* from, Real* to, Phases& phases) const {
    const int64_t from_stride = winograd_stride<Stored>(block, s.padded_inputs);
    const int64_t to_stride = winograd_stride<Real>(block, kWinogradChannels);
    const int64_t per_point = static_cast<int64_t>(s.padded_inputs) * s.padded_outputs;
    for (int64_t i = 0; i < part.count; ++i) {
      const int64_t tile = part.first + i;
      kernels.transform_input(s, inputs[tile / s.tiles], s.inputs, position(tile), from + i * s.padded_inputs,
                              from_stride);
    }
    phases.next(0);
    for (int64_t group = part.groups.begin; group < part.groups.end; ++group) {
      const int64_t k = group * kWinogradChannels;
      const int channels = static_cast<int>(std::min<int64_t>(kWinogradChannels, s.outputs - k));
      const auto panels = [&](int64_t one, int point) {
        return weights + one * kWinogradChannels * s.padded_inputs + point * per_point;
      };
      const int64_t later = group + 1 < part.groups.end ? group + 1 : part.groups.begin;
      const bool as_wide = (later + 1) * kWinogradChannels <= s.outputs;
      for (int point = 0; point < kernels.points; ++point) {
        ask_for_addend(part, Slice(part.count, point, kernels.points), k, channels);
        const int64_t done = (group - part.groups.begin) * kernels.points + point;
        ask_for_input(next, Slice(next.count, done, (part.groups.end - part.groups.begin) * kernels.points));
        kernels.multiply(from + point * from_stride, panels(group, point), round_up_to(part.count, kernels.tile_block),
                         s.padded_inputs, round_up_to(channels, kernels.lanes),
                         point + 1 < kernels.points ? panels(group, point + 1) : panels(as_wide ? later : group, 0),
                         to + point * to_stride);
      }
      phases.next(1);
      WinogradEpilogue<Stored> e = epilogue;
      if (e.threshold) e.threshold += k;
      for (int64_t i = 0; i < part.count; ++i) {
        const int64_t tile = part.first + i, n = tile / s.tiles;
        if (addends) e.addend = channels_from(addends[n], k);
        kernels.transform_output(s, e, channels, to + i * kWinogradChannels, to_stride, position(tile),
                                 channels_from(outputs[n], k));
      }
      phases.next(2);
    }
  }

  void ask_for_input(const Part& part, const Slice& slice) const {
    for (int64_t tile = part.first + slice.begin; tile < part.first + slice.end; ++tile)
      ask_for_pixels(inputs[tile / s.tiles], s.height, s.width, s.tile_y(position(tile)) - s.top,
                     s.tile_x(position(tile)) - s.left, s.side + 2, s.inputs);
  }

  void ask_for_addend(const Part& part, const Slice& slice, int64_t channel, int channels) const {
    if (!addends) return;
    for (int64_t tile = part.first + slice.begin; tile < part.first + slice.end; ++tile)
      ask_for_pixels(channels_from(addends[tile / s.tiles], channel), s.out_height, s.out_width,
                     s.tile_y(position(tile)), s.tile_x(position(tile)), s.side, channels);
  }
};

// threshold: float32 where the images are bfloat16.
// seconds: (threads, 3), float64, += the time in input transforms, products, and output transforms.
void winograd(Tensor input, Tensor weights, int64_t side, int64_t top, int64_t left, std::optional<Tensor> threshold,
              std::optional<Tensor> addend, bool relu, std::optional<Tensor> seconds, Tensor output) {
  with_convolution(input, side, [&]<typename Stored>(const WinogradKernels<Stored>& kernels) {
    WinogradEpilogue<Stored> epilogue;
    epilogue.relu = relu;
    if (threshold) epilogue.threshold = static_cast<const RealOf<Stored>*>(threshold->data_ptr());
    Convolution<Stored> convolution{kernels,
                                    winograd_shape(kernels, input, output, top, left),
                                    static_cast<const Stored*>(weights.data_ptr()),
                                    epilogue,
                                    Pictures<Stored>(input),
                                    addend ? Pictures<Stored>(*addend) : Pictures<Stored>(),
                                    Pictures<Stored>(output),
                                    output,
                                    seconds};
    convolution.epilogue.stream = convolution.streams();
    convolution.run();
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
  m.impl("winograd_bfloat16", TORCH_BOX(&csc::winograd_bfloat16));
}

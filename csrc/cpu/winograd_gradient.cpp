// csc_native::winograd_gradient: the dictionary's gradient, summed over tiles in the transformed domain.
//
// The sums of 64 atoms x 64 channels at every point of the transform stay in the second-level cache while tiles
// pass, and are transformed once at the end. Wide dictionaries have many such blocks, which share nothing. Of
// narrow ones the threads take slices of the tiles, whose sums are added in order: the same bits every time.

#include "winograd.h"

namespace csc {
namespace {

template <typename Real>
struct Correlation {
  const WinogradKernels<Real>& kernels;
  const WinogradShape s;
  const std::vector<Tensor>& images;
  const std::vector<Tensor>& codes;
  const Real scale;
  const Tensor& gradient;
  const std::optional<Tensor>& seconds;
  const std::vector<Pictures<Real>> image_pictures{images.begin(), images.end()},
      code_pictures{codes.begin(), codes.end()};

  static constexpr int kSums = kWinogradChannels * kWinogradChannels;

  int64_t tiles_of_one() const { return static_cast<int64_t>(s.tiles) * images[0].size(0); }
  int64_t tiles() const { return tiles_of_one() * static_cast<int64_t>(images.size()); }

  void run() const {
    if (tiles() == 0) return;
    const int threads = static_cast<int>(torch::stable::get_num_threads());
    const int64_t atom_blocks = (s.outputs + kWinogradChannels - 1) / kWinogradChannels;
    const int64_t blocks = atom_blocks * ((s.inputs + kWinogradChannels - 1) / kWinogradChannels);
    const int64_t tile_bytes = 2 * kernels.points * kWinogradChannels * static_cast<int64_t>(sizeof(Real));
    const int64_t step = std::min(tiles(), std::max<int64_t>(kWinogradBlockBytes / tile_bytes, 24));
    const int64_t steps = (tiles() + step - 1) / step;
    // Fewer blocks than threads are cut into slices, up to four for each thread where they have four steps or more.
    const int64_t least = (threads + blocks - 1) / blocks, most = std::max<int64_t>(least, 4 * threads / blocks);
    const int64_t slices = std::min(steps, std::clamp(steps / 4, least, most)), pieces = blocks * slices;
    std::vector<std::unique_ptr<Scratch<Real>>> sums(slices > 1 ? pieces : 0);

    Pieces queue(pieces);
    queue.share([&](int64_t task) {
      const Scratch<Real> image_points(kernels.points * winograd_stride<Real>(step, kWinogradChannels));
      const Scratch<Real> code_points(kernels.points * winograd_stride<Real>(step, kWinogradChannels));
      std::unique_ptr<Scratch<Real>> sum;
      Phases phases(seconds.has_value());
      for (int64_t piece; (piece = queue.take()) < pieces;) {
        const int64_t block = piece / slices, slice = piece % slices;
        if (sum)
          std::fill_n(sum->get(), kernels.points * kSums, Real(0));
        else
          sum = std::make_unique<Scratch<Real>>(kernels.points * kSums);
        WinogradGradient<Real> g = block_gradient(block % atom_blocks, block / atom_blocks);
        const Slice part(steps, slice, slices);
        for (int64_t b = part.begin; b < part.end; ++b)
          add_tiles(g, b * step, step, part.end * step, image_points.get(), code_points.get(), sum->get(), phases);
        g.sums = sum->get();
        if (slices == 1)
          kernels.add_gradient(g);
        else
          sums[piece] = std::move(sum);
        phases.next(2);
      }
      phases.write(seconds, task);
    });
    if (slices == 1) return;
    parallel_tasks(blocks * kernels.points, [&](int64_t i) {
      const int64_t first = i / kernels.points * slices, offset = i % kernels.points * kSums;
      Real* total = sums[first]->get() + offset;
      for (int64_t slice = 1; slice < slices; ++slice) {
        const Real* other = sums[first + slice]->get() + offset;
        for (int64_t entry = 0; entry < kSums; ++entry) total[entry] += other[entry];
      }
    });
    parallel_tasks(blocks, [&](int64_t block) {
      WinogradGradient<Real> g = block_gradient(block % atom_blocks, block / atom_blocks);
      g.sums = sums[block * slices]->get();
      kernels.add_gradient(g);
    });
  }

  WinogradGradient<Real> block_gradient(int64_t atom_block, int64_t channel_block) const {
    WinogradGradient<Real> g;
    g.gradient = static_cast<Real*>(gradient.data_ptr());
    g.atoms = s.outputs;
    g.channels = s.inputs;
    g.first_atom = static_cast<int>(atom_block) * kWinogradChannels;
    g.last_atom = std::min(g.first_atom + kWinogradChannels, s.outputs);
    g.first_channel = static_cast<int>(channel_block) * kWinogradChannels;
    g.last_channel = std::min(g.first_channel + kWinogradChannels, s.inputs);
    g.scale = scale;
    return g;
  }

  // Pictures and place of a tile of all pairs.
  struct Place {
    Picture<Real> image, code;
    int position;
  };

  Place place(const WinogradGradient<Real>& g, int64_t tile) const {
    const size_t pair = static_cast<size_t>(tile / tiles_of_one());
    const int64_t n = tile % tiles_of_one() / s.tiles;
    return {channels_from(image_pictures[pair][n], g.first_channel),
            channels_from(code_pictures[pair][n], g.first_atom), static_cast<int>(tile % s.tiles)};
  }

  // Adds `step` tiles, or what is left of them, from `first` on, and asks for those after them before `end`.
  void add_tiles(const WinogradGradient<Real>& g, int64_t first, int64_t step, int64_t end, Real* image_points,
                 Real* code_points, Real* sums, Phases& phases) const {
    const int64_t stride = winograd_stride<Real>(step, kWinogradChannels);
    const int64_t count = std::min(step, tiles() - first),
                  later = std::min(step, std::min(end, tiles()) - first - count);
    const int atoms = g.last_atom - g.first_atom, channels = g.last_channel - g.first_channel;
    for (int64_t i = 0; i < count; ++i) {
      const Place p = place(g, first + i);
      kernels.transform_input(s, p.image, channels, p.position, image_points + i * kWinogradChannels, stride);
      kernels.transform_gradient(s, p.code, atoms, p.position, code_points + i * kWinogradChannels, stride);
    }
    phases.next(0);
    for (int point = 0; point < kernels.points; ++point) {
      const Slice next(later, point, kernels.points);
      for (int64_t tile = first + count + next.begin; tile < first + count + next.end; ++tile) {
        const Place p = place(g, tile);
        const int y = s.tile_y(p.position), x = s.tile_x(p.position);
        ask_for_pixels(p.image, s.height, s.width, y - s.top, x - s.left, s.side + 2, channels);
        ask_for_pixels(p.code, s.out_height, s.out_width, y, x, s.side, atoms);
      }
      kernels.accumulate(code_points + point * stride, image_points + point * stride, static_cast<int>(count), atoms,
                         channels, sums + point * kSums);
    }
    phases.next(1);
  }
};

// gradient (K, M, 3, 3), contiguous: += scale times the gradient of sum_i <A' images_i, codes_i> in the dictionary.
// seconds: (threads, 3), float64, += the time in transforms of tiles, products, and the rest.
void winograd_gradient(std::vector<Tensor> images, std::vector<Tensor> codes, int64_t side, int64_t top, int64_t left,
                       double scale, std::optional<Tensor> seconds, Tensor gradient) {
  with_kernels(gradient, side, [&]<typename Real>(const WinogradKernels<Real>& kernels) {
    Correlation<Real>{kernels,
                      winograd_shape(kernels, images[0], codes[0], top, left),
                      images,
                      codes,
                      static_cast<Real>(scale),
                      gradient,
                      seconds}
        .run();
  });
}

}  // namespace
}  // namespace csc

STABLE_TORCH_LIBRARY_IMPL(csc_native, CPU, m) { m.impl("winograd_gradient", TORCH_BOX(&csc::winograd_gradient)); }

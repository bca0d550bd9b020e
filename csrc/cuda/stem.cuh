// One tile of a stem's image on chip: reading it, and the three linear maps over it.
//
// The synthesis of one row of pixels h is a product and a shifted sum: Q[(m, dx)][j] = sum over dy and k of
// D[k, m, dy, dx] z[k, (h + top - dy) / sH, j], then (A z)[m, h, w] = sum over dx of Q[(m, dx)][(w + left - dx) / sW].
// The analysis of 16 positions is one product with their windows unfolded. Both are a warp's own work.

#pragma once

#include "numbers.cuh"
#include "product.cuh"
#include "stem_layout.h"

namespace csc::cuda {

struct Span {
  int begin, end;
  __device__ bool has(int i) const { return i >= begin && i < end; }
};

// Positions of a code, or pixels of an image.
struct Region {
  Span rows, columns;
  __device__ bool has(int i, int j) const { return rows.has(i) && columns.has(j); }
};

// Where a tile lies: its sample, what it owns, and what the first row and column in shared memory stand for.
struct Place {
  int64_t n = -1;
  Region owned = {};
  int row = 0, column = 0, pixel_row = 0, pixel_column = 0;
};

template <typename P>
class Stem {
 public:
  using Element = typename P::Element;

  __device__ Stem(const SolveArguments& a, const StemLayout& layout, unsigned char* shared)
      : a_(a), s_(a.shape), l_(layout), shared_(shared), warp_(threadIdx.x / 32), lane_(threadIdx.x % 32) {}

  __device__ Shared<Element> code_buffer(int i) const {
    return Shared<Element>(shared_ + l_.codes + i * l_.code_bytes);
  }
  __device__ Shared<Element> image_buffer(int i) const {
    return Shared<Element>(shared_ + l_.images + i * l_.image_bytes);
  }

  // solve(tile, at, x): every tile of this block, neighbours in a row one after the other. While a tile is solved, the
  // pixels of the next arrive: the columns that both see are copied on chip.
  template <typename Solve>
  __device__ void each_tile(int halo, const Solve& solve) const {
    const int64_t tiles = tiles_of(s_, a_.tile_rows, a_.tile_columns) * s_.batch;
    const int64_t end = tiles * (blockIdx.x + 1) / gridDim.x;
    int64_t tile = tiles * blockIdx.x / gridDim.x;
    int buffer = 0;
    Place at = place(tile, halo);
    if (tile < end) fetch_image(at, image_buffer(buffer), Place(), image_buffer(buffer));
    for (; tile < end; ++tile, buffer ^= 1) {
      __pipeline_wait_prior(0);
      __syncthreads();
      const Place next = place(tile + 1, halo);
      if (tile + 1 < end) fetch_image(next, image_buffer(buffer ^ 1), at, image_buffer(buffer));
      solve(tile, at, image_buffer(buffer));
      at = next;
    }
  }

  __device__ Place place(int64_t tile, int halo) const {
    const int across = (s_.code_width + a_.tile_columns - 1) / a_.tile_columns;
    const int64_t of_sample = tiles_of(s_, a_.tile_rows, a_.tile_columns);
    const int row = static_cast<int>(tile % of_sample) / across * a_.tile_rows;
    const int column = static_cast<int>(tile % of_sample) % across * a_.tile_columns;
    Place at;
    at.n = tile / of_sample;
    at.owned = {{row, min(row + a_.tile_rows, s_.code_height)}, {column, min(column + a_.tile_columns, s_.code_width)}};
    const Region all = around(at, halo);
    at.row = all.rows.begin;
    at.column = all.columns.begin;
    at.pixel_row = at.row * s_.stride_height - s_.top;
    at.pixel_column = floor_div(at.column * s_.stride_width - s_.left, 8) * 8;
    return at;
  }

  // The codes of a tile and `steps` steps around it.
  __device__ Region around(const Place& at, int steps) const {
    const int rows = steps * l_.reach_rows, columns = steps * l_.reach_columns;
    return {{max(at.owned.rows.begin - rows, 0), min(at.owned.rows.end + rows, s_.code_height)},
            {max(at.owned.columns.begin - columns, 0), min(at.owned.columns.end + columns, s_.code_width)}};
  }

  // The pixels, padding included, that codes see.
  __device__ Region window(const Region& codes) const {
    return {{codes.rows.begin * s_.stride_height - s_.top,
             (codes.rows.end - 1) * s_.stride_height - s_.top + s_.kernel_height},
            {codes.columns.begin * s_.stride_width - s_.left,
             (codes.columns.end - 1) * s_.stride_width - s_.left + s_.kernel_width}};
  }

  __device__ bool in_image(int h, int w) const { return h >= 0 && h < s_.height && w >= 0 && w < s_.width; }

  __device__ int code_index(const Place& at, int i, int j) const {
    return ((i - at.row) * l_.pitch + j - at.column) * l_.atom_pitch;
  }
  __device__ int image_index(const Place& at, int m, int h, int w) const {
    return (m * l_.image_rows + h - at.pixel_row) * l_.image_pitch + w - at.pixel_column;
  }

  // Both orders of the dictionary, the second from the first, zero where they are padded, and where a tap lies from its
  // window's corner.
  __device__ void load_dictionary() {
    for (int e = threadIdx.x; e < l_.atoms16 * l_.tap_pitch; e += kStemThreads) {
      const int k = e / l_.tap_pitch, tap = e % l_.tap_pitch;
      float value = 0;
      if (k < s_.atoms && tap < l_.taps)
        value = load<Element>(a_.dictionary, k, tap / (s_.kernel_height * s_.kernel_width),
                              tap / s_.kernel_width % s_.kernel_height, tap % s_.kernel_width);
      analysis_atoms()[e] = from_float<Element>(value);
    }
    __syncthreads();
    for (int e = threadIdx.x; e < s_.kernel_height * l_.row_taps16 * l_.atom_pitch; e += kStemThreads) {
      const int k = e % l_.atom_pitch, tap = e / l_.atom_pitch % l_.row_taps16;
      const int dy = e / l_.atom_pitch / l_.row_taps16;
      Element value = from_float<Element>(0);
      if (k < s_.atoms && tap < l_.row_taps) {
        const int m = tap / s_.kernel_width, dx = tap % s_.kernel_width;
        value = analysis_atoms()[k * l_.tap_pitch + (m * s_.kernel_height + dy) * s_.kernel_width + dx];
      }
      synthesis_atoms()[e] = value;
    }
    for (int tap = threadIdx.x; tap < l_.taps16; tap += kStemThreads) {
      const int m = tap / (s_.kernel_height * s_.kernel_width);
      const int dy = tap / s_.kernel_width % s_.kernel_height, dx = tap % s_.kernel_width;
      tap_offsets()[tap] = tap < l_.taps ? (m * l_.image_rows + dy) * l_.image_pitch + dx : -1;
    }
  }

  // x around a tile with zeros for its padding: lines of 16 bytes copied asynchronously where x has them. The columns
  // that `before`, whose pixels are in `from`, has too come from there.
  __device__ void fetch_image(const Place& at, Shared<Element> to, const Place& before, Shared<Element> from) const {
    constexpr int kLine = 16 / static_cast<int>(sizeof(Element));
    const int shift = at.pixel_column - before.pixel_column;
    const bool follows = at.n == before.n && at.pixel_row == before.pixel_row && shift >= 0;
    const int known = follows ? max(l_.image_pitch - shift, 0) : 0;
    for (int e = threadIdx.x; e < s_.channels * l_.image_rows * (known / kLine); e += kStemThreads) {
      const int index = e / (known / kLine) * l_.image_pitch + e % (known / kLine) * kLine;
      copy_shared_line((to + index).get(), (from + (index + shift)).get());
    }
    const int step = a_.copies_lines ? kLine : 1;
    const int lines = (l_.image_pitch - known) / step;
    const auto* x = static_cast<const Element*>(a_.x.data);
    for (int e = threadIdx.x; e < s_.channels * l_.image_rows * lines; e += kStemThreads) {
      const int m = e / lines / l_.image_rows, r = e / lines % l_.image_rows, c = known + e % lines * step;
      const int h = at.pixel_row + r, w = at.pixel_column + c;
      const int index = (m * l_.image_rows + r) * l_.image_pitch + c;
      if (!in_image(h, w)) {
        for (int i = 0; i < step; ++i) to[index + i] = from_float<Element>(0);
      } else if (a_.copies_lines) {
        copy_line((to + index).get(), x + offset(a_.x, at.n, m, h, w));
      } else {
        to[index] = load_global(x + offset(a_.x, at.n, m, h, w));
      }
    }
    __pipeline_commit();
  }

  // to = mask * from, pixel by pixel.
  __device__ void mask_image(const Place& at, Shared<Element> from, Shared<Element> to) const {
    for (int e = threadIdx.x; e < l_.image_size; e += kStemThreads) {
      const int m = e / l_.image_pitch / l_.image_rows;
      const int h = at.pixel_row + e / l_.image_pitch % l_.image_rows, w = at.pixel_column + e % l_.image_pitch;
      float value = 0;
      if (in_image(h, w)) value = to_float(from[e]) * load<Element>(a_.mask, at.n, m, h, w);
      to[e] = from_float<Element>(value);
    }
  }

  // write(m, h, w, index, sum): A code at every pixel of a region, of the codes in `valid`, in float32.
  template <typename Write>
  __device__ void synthesis(const Place& at, Shared<Element> code, const Region& valid, const Region& pixels,
                            const Write& write) const {
    const Shared<float> lines(shared_ + l_.scratch + warp_ * l_.scratch_bytes);
    const int line_pitch = l_.pitch + 4;
    const int first = (valid.columns.begin - at.column) / 16 * 16;
    const int last = valid.columns.end - at.column;
    for (int h = pixels.rows.begin + warp_; h < pixels.rows.end; h += kStemWarps) {
      for (int tap = 0; tap < l_.row_taps16; tap += 16) {
        for (int j = first; j < last; j += 16) {
          typename P::Sums sums;
          sums.clear();
#pragma unroll 1
          for (int dy = 0; dy < s_.kernel_height; ++dy) {
            const int row = h + s_.top - dy;
            if (row < 0 || row % s_.stride_height || !valid.rows.has(row / s_.stride_height)) continue;
            const int i = row / s_.stride_height - at.row;
            sums.multiply(synthesis_atoms() + (dy * l_.row_taps16 + tap) * l_.atom_pitch, l_.atom_pitch,
                          code + (i * l_.pitch + j) * l_.atom_pitch, l_.atom_pitch, l_.atoms16);
          }
          sums.store(lines + tap * line_pitch + j, line_pitch);
        }
      }
      __syncwarp();
      for (int m = 0; m < s_.channels; ++m) {
        for (int w = pixels.columns.begin + lane_; w < pixels.columns.end; w += 32) {
          float sum = 0;
#pragma unroll 1
          for (int dx = 0; dx < s_.kernel_width; ++dx) {
            const int column = w + s_.left - dx;
            if (column < 0 || column % s_.stride_width || !valid.columns.has(column / s_.stride_width)) continue;
            sum += lines[(m * s_.kernel_width + dx) * line_pitch + column / s_.stride_width - at.column];
          }
          write(m, h, w, image_index(at, m, h, w), sum);
        }
      }
      __syncwarp();
    }
  }

  // write(k, i, j, index, inside, sum): A' image at the codes of a region, in whole lines of 16 and atoms of 16:
  // what is not inside must become zero. `columns_adjacent`: neighbouring lanes take neighbouring columns.
  template <typename Write>
  __device__ void analysis(const Place& at, Shared<Element> image, const Region& codes, bool columns_adjacent,
                           const Write& write) const {
    const Shared<Element> windows(shared_ + l_.scratch + warp_ * l_.scratch_bytes);
    const Shared<float> tile((windows + 16 * l_.tap_pitch).get());
    each_line(at, codes, [&](int i, int j) {
      unfold(at, image, codes, i, j, 0, l_.taps16, windows, l_.tap_pitch);
      __syncwarp();
      for (int k = 0; k < l_.atoms16; k += 16) {
        typename P::Sums sums;
        sums.clear();
        sums.multiply(analysis_atoms() + k * l_.tap_pitch, l_.tap_pitch, windows, l_.tap_pitch, l_.taps16);
        sums.store(tile, kTilePitch);
        __syncwarp();
#pragma unroll 2
        for (int e = lane_; e < 256; e += 32) {
          const int atom = columns_adjacent ? e / 16 : e % 16, column = columns_adjacent ? e % 16 : e / 16;
          const bool inside = k + atom < s_.atoms && codes.columns.has(j + column);
          write(k + atom, i, j + column, code_index(at, i, j + column) + k + atom, inside,
                tile[atom * kTilePitch + column]);
        }
        __syncwarp();
      }
    });
  }

  // visit(i, j, k, index, inside): every entry of a region of codes, padded as the analysis pads it.
  template <typename Visit>
  __device__ void each_code(const Place& at, const Region& codes, const Visit& visit) const {
    each_line(at, codes, [&](int i, int j) {
      for (int e = lane_; e < 16 * l_.atoms16; e += 32) {
        const int column = j + e / l_.atoms16, k = e % l_.atoms16;
        visit(k, i, column, code_index(at, i, column) + k, k < s_.atoms && codes.columns.has(column));
      }
    });
  }

  // The 16 windows from code (i, j) on, taps [begin, begin + count): windows[position][tap], zero beyond the region.
  __device__ void unfold(const Place& at, Shared<Element> image, const Region& codes, int i, int j, int begin,
                         int count, Shared<Element> windows, int pitch) const {
    const int position = lane_ % 16;
    const bool inside = codes.columns.has(j + position);
    const int corner = image_index(at, 0, i * s_.stride_height - s_.top, (j + position) * s_.stride_width - s_.left);
#pragma unroll 2
    for (int t = lane_ / 16; t < count; t += 2) {
      const int tap = tap_offsets()[begin + t];
      Element value = from_float<Element>(0);
      if (inside && tap >= 0) value = image[corner + tap];
      windows[position * pitch + t] = value;
    }
  }

 private:
  // visit(i, j): the lines of 16 positions of a region, each one warp's; j may begin before the region.
  template <typename Visit>
  __device__ void each_line(const Place& at, const Region& codes, const Visit& visit) const {
    const int first = at.column + (codes.columns.begin - at.column) / 16 * 16;
    const int across = (codes.columns.end - first + 15) / 16;
    const int count = (codes.rows.end - codes.rows.begin) * across;
    for (int line = warp_; line < count; line += kStemWarps)
      visit(codes.rows.begin + line / across, first + line % across * 16);
  }

  __device__ Shared<Element> analysis_atoms() const { return Shared<Element>(shared_ + l_.analysis_atoms); }
  __device__ Shared<Element> synthesis_atoms() const { return Shared<Element>(shared_ + l_.synthesis_atoms); }
  __device__ Shared<int> tap_offsets() const { return Shared<int>(shared_ + l_.tap_offsets); }

 protected:
  const SolveArguments& a_;
  const Shape& s_;
  const StemLayout& l_;
  unsigned char* shared_;
  const int warp_, lane_;
};

}  // namespace csc::cuda

// Shapes of a convolutional sparse code, and how rows of images and codes lie in scratch memory.
//
// The width is what SIMD lanes run along. A strided convolution reads every sW-th pixel of a row, so a
// row of an image is kept split into its sW phases: padded pixel u = w + left lies in phase u % sW at
// u / sW, and every access of every tap is to consecutive floats. Zeros stand where the padding is.
//
//   image row: [M][sW][phase]      code row: [K][code], `code_margin` zeros before it
//                                  products: [..][product], `margin` zeros before them
//
// Rows are found through Plane::row, which may wrap around: a ring of the last few rows.

#pragma once

#include <algorithm>
#include <cstdint>

namespace csc {

struct Shape {
  int batch, channels, height, width;  // x: (N, M, H, W)
  int atoms, code_height, code_width;  // z: (N, K, H', W')
  int kernel_height, kernel_width;
  int stride_height, stride_width;
  int top, left;

  int taps() const { return channels * kernel_height * kernel_width; }

  // Extra code rows (columns) that a pixel can see beside its own: floor((k - 1) / s).
  int reach_height() const { return (kernel_height - 1) / stride_height; }
  int reach_width() const { return (kernel_width - 1) / stride_width; }

  // Image rows that code rows below `row` see, and code rows that see image rows below `row`.
  int pixels_of(int row) const { return std::min(height, (row - 1) * stride_height - top + kernel_height); }
  int codes_of(int row) const { return std::min(code_height, (row - 1 + top) / stride_height + 1); }

  // Kernel columns that the pixels of one phase see: phase + c sW.
  int columns_of(int phase) const { return (kernel_width - phase + stride_width - 1) / stride_width; }

  // First position, in its phase, of a pixel of the image proper, and how many there are.
  int phase_begin(int phase) const { return phase >= left ? 0 : (left - phase + stride_width - 1) / stride_width; }
  int phase_count(int phase) const {
    const int end = left + width;
    const int stop = end > phase ? (end - phase + stride_width - 1) / stride_width : 0;
    return std::max(0, stop - phase_begin(phase));
  }
};

inline int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

inline int floor_div(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

inline int ceil_div(int a, int b) { return -floor_div(-a, b); }

// The end of code rows, so many at least, that are computed two by two: even, or the last.
inline int whole_pairs(const Shape& s, int rows) { return std::min(round_up(rows, 2), s.code_height); }

// Rows in scratch memory or in a tensor: row i, channel c, column w lies at row(i) + c * channel + w.
struct Plane {
  float* base = nullptr;
  int64_t row_stride = 0;
  int64_t channel_stride = 0;
  int mask = INT32_MAX;  // Row i takes slot i & mask: a ring of mask + 1 rows, a power of two.

  float* row(int i) const { return base + (i & mask) * row_stride; }
  explicit operator bool() const { return base != nullptr; }
};

// Whether a synthesis keeps the products of each kernel column by itself: where those of a pair, at most two for each
// kernel row, stay in a cache.
inline bool keeps_columns(const Shape& s) {
  return int64_t{8} * s.kernel_height * s.channels * s.columns_of(0) * s.code_width <= 1 << 20;
}

// Whether code columns are computed two by two as rows are, see tiles.h: where rows of whole tiles have at most a fifth
// more vectors; of 16 lanes, no more. Of fewer atoms a residual has so few products that what tiles combine is large
// beside it.
inline bool takes_tiles(const Shape& s, int lanes) {
  const int allowed = lanes == 16 ? 5 : 6;
  return s.kernel_height == 3 && s.kernel_width == 3 && s.stride_height == 1 && s.stride_width == 1 &&
         s.channels <= 3 && s.atoms >= 4 &&
         5 * round_up(s.code_width, 2 * lanes) <= allowed * round_up(s.code_width, lanes);
}

// The same for the stride of an image's stem, beside pairs of rows, see strided_tiles.h; vectors of four lanes gain
// nothing.
inline bool takes_strided_tiles(const Shape& s, int lanes) {
  return lanes > 4 && s.kernel_width == 7 && s.stride_width == 2 && s.channels <= 3 && s.atoms >= 4;
}

// Widths in scratch memory, for vectors of `lanes` floats. Whole vectors may be read beyond the columns on either side
// of what a synthesis shifts, and what they read there is zero: the margin of this channel or of the next. Its products
// are shifted where it keeps them by columns, and codes then have no margin; else the codes themselves are. Column 0 is
// aligned.
struct Widths {
  int phase, code, code_margin, product, margin;
  int together;     // Code columns that are stored at once, at most.
  bool suit_tiles;  // Codes lie so that tiles are read fast, whether or not tiles are taken.

  Widths(const Shape& s, int lanes) {
    suit_tiles = takes_tiles(s, lanes);
    together = suit_tiles ? 2 * lanes : lanes;
    const int columns = round_up(s.code_width, together);
    int last = columns + s.reach_width();
    int beyond = s.reach_width();
    for (int phase = 0; phase < s.stride_width; ++phase) {
      const int end = s.phase_begin(phase) + round_up(s.phase_count(phase), lanes);
      last = std::max(last, end);
      beyond = std::max(beyond, end - columns);
    }
    phase = round_up(last + 1, lanes);
    margin = round_up(beyond, lanes);
    product = margin + columns;
    code_margin = keeps_columns(s) ? 0 : margin;
    code = code_margin + columns;
  }
};

}  // namespace csc

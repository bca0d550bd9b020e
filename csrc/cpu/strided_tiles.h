// Tiles of two by two codes for atoms of seven columns at stride 2: the columns of pairs of rows are paired as well.
//
// Pairs (pairs.h) combine the image's rows; here the columns of what they have combined are combined in the same way,
// those of the two phases of the stride by themselves: F(2, 4) of the even taps has five products for eight, F(2, 3) of
// the odd ones four for six, so that of 14 products of two columns nine are left. As in tiles.h a vector holds one
// column of each of as many tiles. Its tiles are those of any two vectors of codes, each of which has half of them:
// they need not lie beside each other, nor in one pair of rows, and an odd one is its own partner. What a code is does
// not depend on it.
//
// Products of a row are [M] steep, [M][2] difference, [M][2] sum, [M][2] upper and [M][2] lower, of the even taps, then
// of the odd.

template <int M>
constexpr int kStridedProducts = 9 * M;

// The columns of tiles that lie `from` behind their even and odd ones.
static inline __attribute__((always_inline)) void tile_columns(const float* low, const float* high, int from, Vec& even,
                                                               Vec& odd) {
  const Vec a = load(low + from), b = load(high + from);
  even = even_columns(a, b);
  odd = odd_columns(a, b);
}

// What the columns of combined rows of two vectors of codes combine to: products `step` floats apart, rows `row_step`.
template <int M>
static void combine_columns(const int* offsets, const float* low, const float* high, int rows, int64_t stride,
                            float* to, int step, int64_t row_step) {
  for (int i = 0; i < rows; ++i, low += stride, high += stride, to += row_step) {
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      float* const difference = to + (M + 2 * m) * step;
      float* const sum = difference + 2 * M * step;
      float* const upper = sum + 2 * M * step;
      float* const lower = upper + 2 * M * step;
      const int evens = offsets[7 * m], odds = offsets[7 * m + 4];
      Vec d[6], odd[4];
#pragma GCC unroll 3
      for (int j = 0; j < 6; j += 2) tile_columns(low, high, evens + j, d[j], d[j + 1]);
      store(to + m * step, 2.0f * d[3] - d[1] - d[2]);
      store(difference, d[2] + d[3] - 2.0f * d[1]);
      store(sum, d[1] + 2.5f * d[2] + d[3]);
      store(upper, d[0] - d[3] + 1.5f * (d[1] - d[2]));
      store(lower, d[4] - d[1] + 1.5f * (d[3] - d[2]));
#pragma GCC unroll 2
      for (int j = 0; j < 4; j += 2) tile_columns(low, high, odds + j, odd[j], odd[j + 1]);
      store(difference + step, odd[2] - odd[1]);
      store(sum + step, odd[1] + 2.0f * odd[2]);
      store(upper + step, odd[0] + odd[1] - 2.0f * odd[2]);
      store(lower + step, odd[3] - 0.5f * (odd[1] + odd[2]));
    }
  }
}

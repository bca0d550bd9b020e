// Tiles of two by two codes for atoms of seven columns at stride 2: the columns of pairs of rows are paired as well.
//
// Pairs (pairs.h) combine the image's rows; here the columns of what they have combined are combined in the same way,
// those of the two phases of the stride by themselves: F(2, 4) of the even taps has five products for eight, F(2, 3) of
// the odd ones four for six, so that of 14 products of two columns nine are left. In both directions F(2, 4) would cost
// an analysis more than twice PyTorch's error: it takes the even taps two by two, and ten products. As in tiles.h a
// vector holds one column of each of as many tiles. Its tiles are those of any two vectors of codes, each of which has
// half of them: they need not lie beside each other, nor in one pair of rows, and an odd one is its own partner. What a
// code is does not depend on it.
//
// Products of a row are, kind by kind,
//
//   analysis     [M] difference  [M][3] sum         [M][3] upper  [M][3] lower
//   correlation  [M] steep       [M][2] difference  [M][2] sum    [M][2] upper  [M][2] lower
//
// of the even taps (the first two and the last two of them in an analysis), then of the odd.

// Taps below each other that pairs of rows take together here: of four in both directions the errors of a dictionary's
// gradient multiply, and too many are beyond the tests' rule.
constexpr int kStridedTaps = kLanes == 16 ? 4 : 3;

template <int M>
constexpr int kAnalysisProducts = 10 * M;
template <int M>
constexpr int kCorrelationProducts = 9 * M;

// The columns of tiles that lie `from` behind their even and odd ones.
static inline __attribute__((always_inline)) void tile_columns(const float* low, const float* high, int from, Vec& even,
                                                               Vec& odd) {
  const Vec a = load(low + from), b = load(high + from);
  even = even_columns(a, b);
  odd = odd_columns(a, b);
}

// What three odd taps multiply: sum, difference, upper and lower, of the columns from `from` on.
static inline __attribute__((always_inline)) void combine_odd(const float* low, const float* high, int from,
                                                              Vec (&d)[4]) {
#pragma GCC unroll 2
  for (int j = 0; j < 4; j += 2) tile_columns(low, high, from + j, d[j], d[j + 1]);
  combine(d);
}

// Combined rows of two vectors of codes for an analysis, `step` floats between two products.
template <int M>
static void combine_for_analysis(const int* offsets, const float* low, const float* high, int rows, int64_t stride,
                                 float* to, int step) {
  for (int i = 0; i < rows; ++i, low += stride, high += stride, to += kAnalysisProducts<M> * step) {
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      float* const sum = to + (M + 3 * m) * step;
      float* const upper = sum + 3 * M * step;
      float* const lower = upper + 3 * M * step;
      const int evens = offsets[7 * m], odds = offsets[7 * m + 4];
      Vec d[6], odd[4];
#pragma GCC unroll 3
      for (int j = 0; j < 6; j += 2) tile_columns(low, high, evens + j, d[j], d[j + 1]);
      store(sum, d[1]);
      store(sum + step, d[3]);
      store(upper, d[0] - d[1]);
      store(upper + step, d[2] - d[3]);
      store(lower, d[2] - d[1]);
      store(lower + step, d[4] - d[3]);
      combine_odd(low, high, odds, odd);
      store(to + m * step, odd[1]);
      store(sum + 2 * step, odd[0]);
      store(upper + 2 * step, odd[2]);
      store(lower + 2 * step, odd[3]);
    }
  }
}

// The same for a correlation, rows `to_step` floats apart.
template <int M>
static void combine_for_correlation(const int* offsets, const float* low, const float* high, int rows, int64_t stride,
                                    float* to, int64_t to_step) {
  for (int i = 0; i < rows; ++i, low += stride, high += stride, to += to_step) {
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      float* const difference = to + (M + 2 * m) * kLanes;
      float* const sum = difference + 2 * M * kLanes;
      float* const upper = sum + 2 * M * kLanes;
      float* const lower = upper + 2 * M * kLanes;
      const int evens = offsets[7 * m], odds = offsets[7 * m + 4];
      Vec d[6], odd[4];
#pragma GCC unroll 3
      for (int j = 0; j < 6; j += 2) tile_columns(low, high, evens + j, d[j], d[j + 1]);
      store(to + m * kLanes, d[3] - d[1]);
      store(difference, d[2] + d[3] - 2.0f * d[1]);
      store(sum, 2.0f * d[1] + 3.0f * d[2] + d[3]);
      store(upper, d[0] - d[2] + 0.5f * (d[1] - d[3]));
      store(lower, d[4] - d[2] + 2.0f * (d[3] - d[1]));
      combine_odd(low, high, odds, odd);
      store(difference + kLanes, odd[1]);
      store(sum + kLanes, odd[0]);
      store(upper + kLanes, odd[2]);
      store(lower + kLanes, odd[3]);
    }
  }
}

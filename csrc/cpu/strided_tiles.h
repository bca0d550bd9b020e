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
// Products of a row are, first those that both columns of a tile share,
//
//   analysis     [M][sum, sum, sum, difference]  [M][upper, upper, upper, lower, lower, lower]
//   correlation  [M][steep, difference, difference, sum, sum]  [M][upper, upper, lower, lower]
//
// of the even taps (the first two and the last two of them in an analysis), then of the odd.

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

// Combined rows of two vectors of codes for an analysis.
template <int M>
static void combine_for_analysis(const int* offsets, const float* low, const float* high, int rows, int64_t stride,
                                 float* to) {
  for (int i = 0; i < rows; ++i, low += stride, high += stride, to += kAnalysisProducts<M> * kLanes) {
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      float* const shared = to + 4 * m * kLanes;
      float* const apart = to + (4 * M + 6 * m) * kLanes;
      const int evens = offsets[7 * m], odds = offsets[7 * m + 4];
      Vec d[6], odd[4];
#pragma GCC unroll 3
      for (int j = 0; j < 6; j += 2) tile_columns(low, high, evens + j, d[j], d[j + 1]);
      store(shared, d[1]);
      store(shared + kLanes, d[3]);
      store(apart, d[0] - d[1]);
      store(apart + kLanes, d[2] - d[3]);
      store(apart + 3 * kLanes, d[2] - d[1]);
      store(apart + 4 * kLanes, d[4] - d[3]);
      combine_odd(low, high, odds, odd);
      store(shared + 2 * kLanes, odd[0]);
      store(shared + 3 * kLanes, odd[1]);
      store(apart + 2 * kLanes, odd[2]);
      store(apart + 5 * kLanes, odd[3]);
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
      float* const shared = to + 5 * m * kLanes;
      float* const apart = to + (5 * M + 4 * m) * kLanes;
      const int evens = offsets[7 * m], odds = offsets[7 * m + 4];
      Vec d[6], odd[4];
#pragma GCC unroll 3
      for (int j = 0; j < 6; j += 2) tile_columns(low, high, evens + j, d[j], d[j + 1]);
      store(shared, d[3] - d[1]);
      store(shared + kLanes, d[2] + d[3] - 2.0f * d[1]);
      store(shared + 3 * kLanes, 2.0f * d[1] + 3.0f * d[2] + d[3]);
      store(apart, d[0] - d[2] + 0.5f * (d[1] - d[3]));
      store(apart + 2 * kLanes, d[4] - d[2] + 2.0f * (d[3] - d[1]));
      combine_odd(low, high, odds, odd);
      store(shared + 2 * kLanes, odd[1]);
      store(shared + 4 * kLanes, odd[0]);
      store(apart + kLanes, odd[2]);
      store(apart + 3 * kLanes, odd[3]);
    }
  }
}

// Tiles of two by two codes for atoms of seven columns at stride 2: the columns of pairs of rows are paired as well.
//
// Pairs (pairs.h) combine the image's rows; here the columns of what they have combined are combined in the same way,
// those of the two phases of the stride by themselves: F(2, 4) of the even taps has five products for eight, F(2, 3) of
// the odd ones four for six, so that of 14 products of two columns nine are left. As in tiles.h a vector holds one
// column of each of as many tiles. Its tiles are those of any two vectors of codes, each of which has half of them:
// they need not lie beside each other, nor in one pair of rows, and an odd one is its own partner. What a code is does
// not depend on it.
//
// Products lie as [row][9 M]: of each channel steep, difference and sum (of the even taps, and of the odd), then of
// each channel upper and lower.

constexpr bool kStridedTiles = kLanes == 16;

// Products of a combined row and M channels, and those among them that both columns of a tile share.
template <int M>
constexpr int kColumnProducts = 9 * M;
template <int M>
constexpr int kSharedProducts = 5 * M;

// Combined rows of two vectors of codes, their columns combined: `rows` of them, `to_step` floats apart.
template <int M>
static void combine_columns(const int* offsets, const float* low, const float* high, int rows, int64_t stride,
                            float* to, int64_t to_step) {
  for (int i = 0; i < rows; ++i, low += stride, high += stride, to += to_step) {
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      float* const shared = to + 5 * m * kLanes;
      float* const apart = to + (kSharedProducts<M> + 4 * m) * kLanes;
      const auto columns = [&](int from, Vec& even, Vec& odd) {
        const Vec a = load(low + from), b = load(high + from);
        even = even_columns(a, b);
        odd = odd_columns(a, b);
      };
      const int evens = offsets[7 * m], odds = offsets[7 * m + 4];
      Vec d[6];
      columns(evens, d[0], d[1]);
      columns(evens + 2, d[2], d[3]);
      columns(evens + 4, d[4], d[5]);
      store(shared, d[3] - d[1]);
      store(shared + kLanes, d[2] + d[3] - 2.0f * d[1]);
      store(shared + 3 * kLanes, 2.0f * d[1] + 3.0f * d[2] + d[3]);
      store(apart, d[0] - d[2] + 0.5f * (d[1] - d[3]));
      store(apart + 2 * kLanes, d[4] - d[2] + 2.0f * (d[3] - d[1]));
      columns(odds, d[0], d[1]);
      columns(odds + 2, d[2], d[3]);
      store(shared + 2 * kLanes, d[2] - d[1]);
      store(shared + 4 * kLanes, d[1] + d[2]);
      store(apart + kLanes, d[0] - d[2]);
      store(apart + 3 * kLanes, d[3] - d[1]);
    }
  }
}

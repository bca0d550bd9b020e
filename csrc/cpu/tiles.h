// Tiles of two by two codes: pairs of rows whose columns are paired as well, for 3x3 atoms at stride 1.
//
// F(2, 3) of pairs.h in both directions takes 16 products for 36. A vector holds one column of each of as many tiles:
// two vectors of a row are those of the even columns and of the odd, in the order of tiles that shuffles within
// 128 bits make of them. In either direction the products are, in this order,
//
//   sum      d1 + d2 or c0 + c1     difference  d2 - d1 or c0 - c1
//   upper    d0 - d2 or c0          lower       d3 - d1 or c1
//
// of four rows (columns) d of the image and two of codes, c; upper and lower are of the even and the odd column along
// a row. Products lie as [row kind][half][M][2]: of each row kind sums and differences of the columns, then their
// uppers and lowers. Whatever is not finite is computed row by row, as of pairs.

// Columns of a vector of tiles.
constexpr int kTileColumns = 2 * kLanes;

static inline Vec even_columns(Vec low, Vec high) {
  IntVec at;
  for (int i = 0; i < kLanes; ++i) at[i] = i / 4 * 4 + i % 2 * 2 + i % 4 / 2 * kLanes;
  return __builtin_shuffle(low, high, at);
}

static inline Vec odd_columns(Vec low, Vec high) {
  IntVec at;
  for (int i = 0; i < kLanes; ++i) at[i] = i / 4 * 4 + i % 2 * 2 + 1 + i % 4 / 2 * kLanes;
  return __builtin_shuffle(low, high, at);
}

// The first and the second vector of a row, from its even and odd columns.
static inline Vec low_columns(Vec even, Vec odd) {
  IntVec at;
  for (int i = 0; i < kLanes; ++i) at[i] = i / 4 * 4 + i % 4 / 2 + i % 2 * kLanes;
  return __builtin_shuffle(even, odd, at);
}

static inline Vec high_columns(Vec even, Vec odd) {
  IntVec at;
  for (int i = 0; i < kLanes; ++i) at[i] = i / 4 * 4 + 2 + i % 4 / 2 + i % 2 * kLanes;
  return __builtin_shuffle(even, odd, at);
}

static inline int tiles_of(const Shape& s) { return (s.code_width + kTileColumns - 1) / kTileColumns; }

// Four neighbours become their sum, difference, upper and lower.
static inline __attribute__((always_inline)) void combine(Vec (&d)[4]) {
  const Vec first = d[0];
  d[0] = d[1] + d[2];
  d[3] -= d[1];
  d[1] = d[2] - d[1];
  d[2] = first - d[2];
}

// a, b = a + b, a - b
static inline void add_and_subtract(Vec& a, Vec& b) {
  const Vec difference = a - b;
  a += b;
  b = difference;
}

// The image of the tiles of code rows `row` and row + 1, combined: [tiles][16 M] vectors; false where they are not all
// finite.
template <typename Block>
static inline bool combine_tiles(const Block& b, int row, float* to) {
  const Shape& s = b.shape;
  const float* rows[4];
  for (int j = 0; j < 4; ++j) {
    const int h = row - s.top + j;
    rows[j] = h >= 0 && h < s.height ? b.image.row(h) : b.zeros;
  }
  const int channels = s.channels;
  const float headroom = b.dictionary.tiles.headroom;
  Vec checks[4] = {};
  for (int tile = 0, tiles = tiles_of(s); tile < tiles; ++tile, to += 16 * channels * kLanes) {
    for (int m = 0; m < channels; ++m) {
      Vec d[4][4];  // [column][row] of the tiles' images.
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 2
        for (int column = 0; column < 4; column += 2) {
          const float* from = rows[j] + m * b.image.channel_stride + tile * kTileColumns + column;
          const Vec low = load(from), high = load(from + kLanes);
          d[column][j] = even_columns(low, high);
          d[column + 1][j] = odd_columns(low, high);
        }
      }
#pragma GCC unroll 4
      for (int column = 0; column < 4; ++column) combine(d[column]);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        Vec values[4] = {d[0][i], d[1][i], d[2][i], d[3][i]};
        combine(values);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          checks[j] += 0 * (headroom * values[j]);
          store(to + (((2 * i + j / 2) * channels + m) * 2 + j % 2) * kLanes, values[j]);
        }
      }
    }
  }
  return sum((checks[0] + checks[1]) + (checks[2] + checks[3])) == 0;
}

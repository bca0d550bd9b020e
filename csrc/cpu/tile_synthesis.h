// Image rows from tiles; see tiles.h and synthesis.h: products are made where the codes lie, and what they add to the
// four columns that a tile sees is put back in order, two columns beside the tile apart from the two below it.

// Vectors of tiles at once, with M channels: 16 registers hold the sums of one.
template <int M>
constexpr int kSpreadTiles = kRegisters == 32 || M == 1 ? 2 : 1;

// A vector of tiles: its codes in both rows, and where what it adds to the image goes.
struct TileCodes {
  const float *first, *second;
  float* to;
};

// The products of V vectors of one row kind with M channels: [half][M][2] vectors, for each v; of the atoms [atom,
// end), added to those of the atoms before them.
template <int M, int V, Codes Kind>
static __attribute__((noinline)) void multiply_tiles(const SynthesisBlock& b, const TileCodes* at, const float* weights,
                                                     int atom, int end, Vec (*to)[16 * M]) {
  Vec sums[4 * M][V];
#pragma GCC unroll 16
  for (int i = 0; i < 4 * M; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[i][v] = Vec{};
  weights += int64_t{4} * M * atom;
  for (int k = atom; k < end; ++k, weights += 4 * M) {
    const int64_t offset = k * b.code.channel_stride;
    Vec even[V], odd[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      Vec low = codes_of<Kind>(at[v].first + offset, at[v].second + offset, 1);
      Vec high = codes_of<Kind>(at[v].first + offset + kLanes, at[v].second + offset + kLanes, 1);
      hold(low);
      hold(high);
      even[v] = even_columns(low, high);
      odd[v] = odd_columns(low, high);
      hold(even[v]);
      hold(odd[v]);
    }
    const auto add = [&](int half, int other_half, const Vec(&z)[V]) {
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        const int product = (half * M + m) * 2 + other_half;
        const Vec w = splat(weights[product]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sums[product][v] += w * z[v];
      }
    };
    add(1, 0, even);
    add(1, 1, odd);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      add_and_subtract(even[v], odd[v]);
      hold(even[v]);
      hold(odd[v]);
    }
    add(0, 0, even);
    add(0, 1, odd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4 * M; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) to[v][i] = atom ? to[v][i] + sums[i][v] : sums[i][v];
}

// Four neighbours of the image from what is added to their sum, difference, upper and lower: combine() turned around.
static inline __attribute__((always_inline)) void spread(Vec (&d)[4]) {
  const Vec first = d[2];
  d[2] = d[0] + d[1] - d[2];
  d[1] = d[0] - d[1] - d[3];
  d[0] = first;
}

// What a vector of tiles adds to four rows of the image: [row][M][columns beside, below] vectors of two, in order.
template <int M>
static inline void spread_tile(const Vec (&products)[16 * M], float* to, int64_t stride) {
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
    Vec d[4][4];  // [column][row]
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      Vec columns[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) columns[j] = products[((2 * i + j / 2) * M + m) * 2 + j % 2];
      spread(columns);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) d[j][i] = columns[j];
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) spread(d[j]);
#pragma GCC unroll 4
    for (int row = 0; row < 4; ++row) {
      float* out = to + (row * M + m) * 2 * stride;
#pragma GCC unroll 2
      for (int j = 0; j < 4; j += 2, out += stride) {
        store(out, low_columns(d[j][row], d[j + 1][row]));
        store(out + kLanes, high_columns(d[j][row], d[j + 1][row]));
      }
    }
  }
}

template <int M, int V>
static void multiply_tile_rows(const SynthesisBlock& b, const TileCodes* at, int count) {
  const float* weights = b.dictionary.tiles.spread;
  const int64_t size = int64_t{4} * M * b.shape.atoms;
  const int some = atoms_to_spread(b.shape, false);
  for (; count >= V; count -= V, at += V) {
    Vec products[V][16 * M];
    for (int atom = 0; atom < b.shape.atoms; atom += some) {
      const int end = std::min(atom + some, b.shape.atoms);
      multiply_tiles<M, V, Codes::sum>(b, at, weights, atom, end, products);
      multiply_tiles<M, V, Codes::difference>(b, at, weights + size, atom, end,
                                              reinterpret_cast<Vec(*)[16 * M]>(products[0] + 4 * M));
      multiply_tiles<M, V, Codes::first>(b, at, weights + 2 * size, atom, end,
                                         reinterpret_cast<Vec(*)[16 * M]>(products[0] + 8 * M));
      multiply_tiles<M, V, Codes::second>(b, at, weights + 3 * size, atom, end,
                                          reinterpret_cast<Vec(*)[16 * M]>(products[0] + 12 * M));
    }
    for (int v = 0; v < V; ++v) spread_tile<M>(products[v], at[v].to, b.products.channel_stride);
  }
  if constexpr (V > 1) {
    if (count) multiply_tile_rows<M, 1>(b, at, count);
  }
}

// Adds what one pair of rows adds to one position of the image, if all of it is finite.
template <int M>
static inline bool add_tiles(const SynthesisBlock& b, const float* products, const PixelPosition& at) {
  const int64_t stride = b.products.channel_stride;
  Vec sums[4][M], check = {};
#pragma GCC unroll 4
  for (int row = 0; row < 4; ++row)
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m, products += 2 * stride) {
      sums[row][m] = load(products) + load(products + stride - 2);
      check += 0 * sums[row][m];
    }
  if (sum(check) != 0) return false;
  const ImageRows image(b, 0, at);
#pragma GCC unroll 4
  for (int row = 0; row < 4; ++row) image.add(row, sums[row]);
  return true;
}

// Adds the pairs in code rows [begin, end).
template <int M>
static void spread_tiles(const SynthesisBlock& b, int begin, int end) {
  constexpr int kMost = 64;
  const Shape& s = b.shape;
  const int step = 2 * pairs_to_spread(s, kLanes), origin = s.phase_begin(0), width = s.phase_count(0);
  TileCodes at[kMost];
  for (int row = begin; row < end; row += step) {
    const int stop = end - row < step ? end : row + step;
    int count = 0;
    for (int upper = row; upper < stop; upper += 2) {
      const float* one = b.code.row(upper);
      const float* other = upper + 1 < s.code_height ? b.code.row(upper + 1) : b.zeros;
      float* to = b.products.row((upper - row) / 2);
      for (int column = 0; column < s.code_width; column += kTileColumns) {
        at[count++] = {one + column, other + column, to + column};
        if (count < kMost) continue;
        multiply_tile_rows<M, kSpreadTiles<M>>(b, at, count);
        count = 0;
      }
    }
    multiply_tile_rows<M, kSpreadTiles<M>>(b, at, count);
    for (int upper = row; upper < stop; upper += 2) {
      const float* products = b.products.row((upper - row) / 2);
      for (int column = 0; column < width; column += kLanes) {
        const int left = width - column;
        const PixelPosition pixels{upper, origin + column, left < kLanes ? left : kLanes};
        if (!add_tiles<M>(b, products + pixels.column, pixels)) spread_row_by_row<M>(b, 0, pixels);
      }
    }
  }
}

// Code rows from tiles, with the FISTA step as the epilogue; see tiles.h.

// Vectors of tiles that a block of atoms takes, and a last atom by itself.
constexpr int kTileVectors = 2, kLoneVectors = 4;

// Vectors of tiles: where the codes of their upper rows go, and what the image combines to.
struct TilePositions {
  static constexpr int kMost = 32;
  CodePosition at[2 * kMost];
  float* code[kMost];
  const float *base[kMost], *support[kMost], *products[kMost];
  int count = 0;
};

// Half of what sums begin with, of both columns, which are subtracted from each other: an infinite threshold counts as
// the largest number, which no sum exceeds where tiles are taken.
template <int A, int V>
static inline __attribute__((always_inline)) void start_halves(const AnalysisEpilogue& e, int atom, Vec (&sums)[A][V]) {
  clear(sums);
  if (!starts_below(e)) return;
#pragma GCC unroll 4
  for (int a = 0; a < A; ++a) {
    const float half = 0.5f * std::min(e.threshold[atom + a], std::numeric_limits<float>::max());
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[a][v] = Vec{} - half;
  }
}

// What is multiplied, one product after the other.
template <int M, int A, int V>
struct TileProducts {
  const float *pixels[V], *weights;

  // Adds half of a row kind: sums and differences, or uppers and lowers. What begins with them is not read.
  template <bool BeginsEven = false, bool BeginsOdd = false>
  inline __attribute__((always_inline)) void add_half(Vec (&even)[A][V], Vec (&odd)[A][V]) {
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      add_product<A, V>(0, pixels, weights, even, BeginsEven && m == 0);
      add_product<A, V>(kLanes, pixels, weights, odd, BeginsOdd && m == 0);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) pixels[v] += 2 * kLanes;
    }
  }

  // Adds a row kind to half of the sum and of the difference of what even and odd columns have.
  template <bool BeginsEven = false, bool BeginsOdd = false>
  inline __attribute__((always_inline)) void add(Vec (&even)[A][V], Vec (&odd)[A][V]) {
    add_half<BeginsEven, BeginsOdd>(even, odd);
    each_sum<A, V>([&](int a, int v) { add_and_subtract(even[a][v], odd[a][v]); });
    add_half(even, odd);
  }
};

// A atoms x V vectors of tiles of M channels at a time: of the positions from `first` on, the atoms from `atom` on.
// Sums and differences of rows come first. Their weights are halved, since what they add to both columns is added and
// subtracted once more before the upper and the lower row's own products.
template <int M, int A, int V>
static void tile_positions(const AnalysisBlock& b, const TilePositions& positions, int first, int atom,
                           const float* weights) {
  const AnalysisEpilogue& e = b.epilogue;
  const bool usual = is_usual(e), whole = b.shape.code_width % kTileColumns == 0;
  if constexpr (V > 1) {
    const int left = (positions.count - first) % V;
    if (left) tile_positions<M, A, V / 2>(b, positions, positions.count - left, atom, weights);
  }
  for (; atom + A <= b.shape.atoms; atom += A, weights += A * 16 * M) {
    for (int from = first; from + V <= positions.count; from += V) {
      Rows<2 * V, 2> rows(e, atom);
      TileProducts<M, A, V> products{{}, weights};
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        products.pixels[v] = positions.products[from + v];
        rows.place(v, positions.code[from + v], positions.base[from + v], positions.support[from + v]);
      }
      const auto finish_row = [&](int below, const Vec(&even)[A][V], const Vec(&odd)[A][V])
                                  __attribute__((always_inline)) {
                                    Vec sums[A][2 * V];
                                    each_sum<A, V>([&](int a, int v) {
                                      sums[a][2 * v] = low_columns(even[a][v], odd[a][v]);
                                      sums[a][2 * v + 1] = high_columns(even[a][v], odd[a][v]);
                                    });
                                    if (usual) {
                                      if (!whole) keep_codes(positions.at + 2 * from, sums);
                                      finish_rows(rows, sums);
                                    } else {
                                      finish_any<A, 2 * V>(e, positions.at + 2 * from, below, atom, sums);
                                    }
                                    rows.next();
                                  };
      alignas(kLanes * 4) float waiting[2][A][V][kLanes];
      Vec even[A][V], odd[A][V];
      {
        Vec lower_even[A][V], lower_odd[A][V];
        start_halves(e, atom, even);
        products.template add<false, true>(even, odd);
        products.template add<true, true>(lower_even, lower_odd);
        each_sum<A, V>([&](int a, int v) {
          add_and_subtract(even[a][v], lower_even[a][v]);
          add_and_subtract(odd[a][v], lower_odd[a][v]);
          add_and_subtract(even[a][v], odd[a][v]);
          add_and_subtract(lower_even[a][v], lower_odd[a][v]);
          store(waiting[0][a][v], lower_even[a][v]);
          store(waiting[1][a][v], lower_odd[a][v]);
        });
      }
      products.add(even, odd);
      finish_row(0, even, odd);
      each_sum<A, V>([&](int a, int v) {
        even[a][v] = load(waiting[0][a][v]);
        odd[a][v] = load(waiting[1][a][v]);
      });
      products.add(even, odd);
      finish_row(1, even, odd);
    }
  }
}

template <int M>
static void tile_atoms(const AnalysisBlock& b, const TilePositions& at) {
  const float* weights = b.dictionary.tiles.analysis;
  const int atom = b.shape.atoms / kTileAtoms * kTileAtoms;
  tile_positions<M, kTileAtoms, kTileVectors>(b, at, 0, 0, weights);
  tile_positions<M, 1, kLoneVectors>(b, at, 0, atom, weights + atom * 16 * M);
}

template <int M>
static void tile_rows(const AnalysisBlock& b, int begin, int end) {
  constexpr int64_t size = 16 * M * kLanes;
  const int64_t hot =
      std::clamp<int64_t>(kHotBytes / 4 / size / kLoneVectors * kLoneVectors, kLoneVectors, TilePositions::kMost);
  TilePositions at;
  const auto flush = [&] {
    if (at.count) tile_atoms<M>(b, at);
    at.count = 0;
  };
  for (int row = begin, found = 0; row < end; row += 2) {
    float* products = b.combined + found * tiles_of(b.shape) * size;
    if (row + 1 == end || !combine_tiles(b, row, products)) {
      analysis_rows(b, row, row + 1 == end ? end : row + 2);
      continue;
    }
    for (int column = 0; column < b.shape.code_width; column += kTileColumns, products += size) {
      for (int v = 0; v < 2; ++v) {
        const int first = column + v * kLanes;
        at.at[2 * at.count + v] = {row, first, std::clamp(b.shape.code_width - first, 0, kLanes)};
      }
      at.code[at.count] = b.epilogue.code.row(row) + column;
      at.base[at.count] = b.epilogue.base ? b.epilogue.base.row(row) + column : nullptr;
      at.support[at.count] = b.epilogue.support ? b.epilogue.support.row(row) + column : nullptr;
      at.products[at.count++] = products;
      if (at.count == hot) flush();
    }
    if (++found == kPairsAtATime) {
      flush();
      found = 0;
    }
  }
  flush();
}

// Code rows [begin, end), where `begin` is even and `end` is, or is the end of the code.
static void analysis_tiles(const AnalysisBlock& b, int begin, int end) {
  switch (b.shape.channels) {
    case 1:
      return tile_rows<1>(b, begin, end);
    case 2:
      return tile_rows<2>(b, begin, end);
    default:
      return tile_rows<3>(b, begin, end);
  }
}

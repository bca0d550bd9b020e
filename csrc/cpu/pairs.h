// Code rows two by two, with fewer products than one by one.
//
// Two neighbouring rows of codes see the same rows of the image, one row apart. With three taps g0 g1 g2 below each
// other and four rows d0 d1 d2 d3 of the image, Winograd's minimal filtering F(2, 3) takes four products for six,
//
//   difference = (d2 - d1) (g0 - g1 + g2) / 2     upper = (d0 - d2) g0
//   sum        = (d1 + d2) (g0 + g1 + g2) / 2     lower = (d3 - d1) g2
//   first row  = upper + sum + difference         second row = lower + sum - difference
//
// and with two taps three for four: sum = d1 (g0 + g1), upper = (d0 - d1) g0, lower = (d2 - d1) g1. These are values of
// polynomials at 0, 1, -1 and infinity. With four taps and five rows it takes five for eight, at 0, 1, -1/2, -2 and
// infinity, which add less rounding than 0, 1, -1, -2 and infinity do:
//
//   difference = (d2 + d3 - 2 d1) (8 g0 - 4 g1 + 2 g2 - g3) / 9
//   steep      = (2 d3 - d1 - d2) (8 g3 - 4 g2 + 2 g1 - g0) / 18
//   first row = upper + sum + difference + steep     second row = lower + sum - difference / 2 - 2 steep
//
// so that sum begins with minus what is steep and difference with twice of it. Pieces of three taps beside one of four
// take differences at -1/2 as well, for the same codes: a difference is one of c0 - part c1. filters.h has all of them.
// Any kernel is cut into so few pieces of up to four taps as can be, of each phase of its stride (see pack_pairs). An
// analysis combines rows of the image only, a few of them for all the atoms; synthesis.h and correlation.h use the same
// products turned around.
//
// What sees NaN or infinity is computed row by row: differences would spread them. So are numbers that a sum of a few
// products could take beyond the largest.

// Combined rows that stay in the first-level cache while the atoms pass over them.
constexpr int64_t kHotBytes = 16 << 10;

// What a product is made of: both rows of a pair, or one of them.
enum class Codes { steep, difference, sum, first, second };

template <Codes Kind>
static inline __attribute__((always_inline)) Vec codes_of(const float* first, const float* second, float part) {
  Vec z = load(Kind == Codes::second ? second : first);
  if (Kind == Codes::sum) z += load(second);
  if (Kind == Codes::difference) z -= part * load(second);
  if (Kind == Codes::steep) z -= 2.0f * load(second);
  return z;
}

// Checks at once, none of which waits for another.
constexpr int kChecks = 4;

// Whether the registers hold the sums of both rows of a pair, of half as many vectors each: of 32 registers, not of 16.
constexpr bool kBothRows = kRegisters == 32;
constexpr int kPairVectors = kBothRows ? kVectors / 2 : kVectors;

// The image's rows of a pair of code rows from `row` on, combined; false where they are not all finite.
template <typename Block>
static inline bool combine_rows(const Block& b, int row, float* to) {
  const PairedTaps& pairs = b.dictionary.pairs;
  const int64_t width = b.image.row_stride;
  const int first = row * b.shape.stride_height - b.shape.top;
  Vec checks[kChecks] = {};
  for (int i = 0; i < pairs.rows(); ++i, to += width) {
    const Combination& combination = pairs.list[i];
    const float* rows[kMostTaps];
    float factors[kMostTaps];
    for (int j = 0; j < kMostTaps; ++j) {
      const int h = j < combination.count ? first + combination.rows[j] : -1;
      const bool seen = h >= 0 && h < b.shape.height;
      rows[j] = seen ? b.image.row(h) : b.zeros;
      factors[j] = seen ? combination.factors[j] : 0;
    }
    const int terms = combination.count;
    const auto combine = [&](int64_t w, Vec& check) {
      Vec value = factors[0] * load(rows[0] + w) + factors[1] * load(rows[1] + w);
      if (terms > 2) value += factors[2] * load(rows[2] + w) + factors[3] * load(rows[3] + w);
      check += 0 * (pairs.headroom * value);
      store(to + w, value);
    };
    int64_t w = 0;
    for (; w + kChecks * kLanes <= width; w += kChecks * kLanes)
#pragma GCC unroll 4
      for (int j = 0; j < kChecks; ++j) combine(w + j * kLanes, checks[j]);
    for (; w < width; w += kLanes) combine(w, checks[0]);
  }
  return sum((checks[0] + checks[1]) + (checks[2] + checks[3])) == 0;
}

// Vectors of the first row of a pair: where the codes go, and the combined rows at its column.
struct PairPositions {
  static constexpr int kMost = 64;
  CodePosition at[kMost];
  float* code[kMost];
  const float *base[kMost], *support[kMost], *rows[kMost];
  int count = 0;
};

// Combined rows to be multiplied, at V positions, and their weights.
template <int V>
struct CombinedRows {
  const float *pixels[V], *weights;
  int64_t stride;

  void next() {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) pixels[v] += stride;
  }
};

// Adds the products of the next `count` rows.
template <int A, int V>
static inline void add_rows(const Taps& taps, int count, CombinedRows<V>& rows, Vec (&sums)[A][V]) {
  for (int i = 0; i < count; ++i, rows.next()) add_products<A, V>(taps, rows.pixels, rows.weights, sums);
}

// The same for two ranges of rows by turns.
template <int A, int V>
static inline void add_rows(const Taps& taps, int count, CombinedRows<V>& rows, Vec (&sums)[A][V],
                            CombinedRows<V>& others, Vec (&other_sums)[A][V]) {
  for (int i = 0; i < count; ++i, rows.next(), others.next()) {
    for (int t = 0; t < taps.count; ++t) {
      add_product<A, V>(taps.offsets[t], rows.pixels, rows.weights, sums);
      add_product<A, V>(taps.offsets[t], others.pixels, others.weights, other_sums);
    }
  }
}

// Calls visit(atom, vector) for every one of a block, unrolled.
template <int A, int V, typename Visit>
static inline __attribute__((always_inline)) void each_sum(const Visit& visit) {
#pragma GCC unroll 8
  for (int a = 0; a < A; ++a)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) visit(a, v);
}

// A atoms x V vectors of both rows at a time.
template <int A, int V>
static void pair_positions(const AnalysisBlock& b, const PairPositions& positions, int from, int atom,
                           const float* const weights) {
  const AnalysisEpilogue& e = b.epilogue;
  // Copies: the stores below cannot alias them.
  const PairedTaps pairs = b.dictionary.pairs;
  const Taps taps{b.dictionary.row_taps, b.dictionary.offsets};
  const int64_t stride = b.image.row_stride;
  const bool usual = is_usual(e);
  Rows<V> rows(e, atom);
  for (; from + V <= positions.count; from += V) {
    const auto rows_from = [&](int row) {
      CombinedRows<V> combined;
      combined.weights = weights + static_cast<int64_t>(row) * taps.count * A;
      combined.stride = stride;
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) combined.pixels[v] = positions.rows[from + v] + row * stride;
      return combined;
    };
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v)
      rows.place(v, positions.code[from + v], positions.base[from + v], positions.support[from + v]);
    const auto finish_row = [&](int below, Vec(&sums)[A][V]) {
      if (usual) {
        keep_codes(positions.at + from, sums);
        finish_rows(rows, sums);
      } else {
        finish_any<A, V>(e, positions.at + from, below, atom, sums);
      }
      rows.next();
    };
    CombinedRows<V> steep = rows_from(0), differences = rows_from(pairs.difference()), sums = rows_from(pairs.sum()),
                    upper = rows_from(pairs.first()), lower = rows_from(pairs.second());
    Vec first[A][V];
    if constexpr (kBothRows) {
      Vec second[A][V];
      clear(second);
      if (pairs.steep) add_rows<A, V>(taps, pairs.steep, steep, second);
      start(e, atom, first);
      if (pairs.steep) {
        each_sum<A, V>([&](int a, int v) {
          first[a][v] -= second[a][v];
          second[a][v] *= 2.0f;
        });
      }
      add_rows<A, V>(taps, pairs.differences, sums, first, differences, second);
      add_rows<A, V>(taps, pairs.sums - pairs.differences, sums, first);
      each_sum<A, V>([&](int a, int v) {
        const Vec difference = second[a][v];
        second[a][v] = first[a][v] - pairs.part * difference;
        first[a][v] += difference;
      });
      add_rows<A, V>(taps, pairs.upper, upper, first, lower, second);
      finish_row(0, first);
      finish_row(1, second);
    } else {
      alignas(kLanes * 4) float waiting[A][V][kLanes], steeps[A][V][kLanes];
      clear(first);
      if (pairs.steep) {
        add_rows<A, V>(taps, pairs.steep, steep, first);
        each_sum<A, V>([&](int a, int v) {
          store(steeps[a][v], first[a][v]);
          first[a][v] *= 2.0f;
        });
      }
      add_rows<A, V>(taps, pairs.differences, differences, first);
      each_sum<A, V>([&](int a, int v) { store(waiting[a][v], first[a][v]); });
      start(e, atom, first);
      if (pairs.steep) each_sum<A, V>([&](int a, int v) { first[a][v] -= load(steeps[a][v]); });
      add_rows<A, V>(taps, pairs.sums, sums, first);
      each_sum<A, V>([&](int a, int v) {
        const Vec difference = load(waiting[a][v]);
        store(waiting[a][v], first[a][v] - pairs.part * difference);
        first[a][v] += difference;
      });
      add_rows<A, V>(taps, pairs.upper, upper, first);
      finish_row(0, first);
      each_sum<A, V>([&](int a, int v) { first[a][v] = load(waiting[a][v]); });
      add_rows<A, V>(taps, pairs.lower, lower, first);
      finish_row(1, first);
    }
  }
  if constexpr (V > 1) {
    if (from < positions.count) pair_positions<A, smaller(V - 1)>(b, positions, from, atom, weights);
  }
}

template <int A>
static void pair_atoms(const AnalysisBlock& b, const PairPositions& at, int atom, const float* weights) {
  const int per_atom = b.dictionary.row_taps * b.dictionary.pairs.rows();
  for (; atom + A <= b.shape.atoms; atom += A, weights += A * per_atom)
    pair_positions<A, kPairVectors>(b, at, 0, atom, weights);
  if constexpr (A > 1) {
    if (atom < b.shape.atoms) pair_atoms<smaller(A - 1)>(b, at, atom, weights);
  }
}

static void analysis_tiles(const AnalysisBlock& b, int begin, int end);

static void analysis_strided(const AnalysisBlock& b, const PairPositions& at);

// Code rows [begin, end), where `begin` is even and `end` is, or is the end of the code.
static void analysis(const AnalysisBlock& b, int begin, int end) {
  if (b.dictionary.tiles) return analysis_tiles(b, begin, end);
  if (!b.combined) {
    analysis_rows(b, begin, end);
    return;
  }
  const PairedTaps& pairs = b.dictionary.pairs;
  const int64_t size = pairs.rows() * b.image.row_stride;
  const int64_t bytes = int64_t{4} * kLanes * pairs.rows() * b.shape.channels * b.shape.stride_width;
  const int64_t hot = kHotBytes / bytes / kPairVectors * kPairVectors;
  const int64_t most = b.dictionary.strided ? PairPositions::kMost
                       : hot < kPairVectors ? kPairVectors
                                            : std::min<int64_t>(hot, PairPositions::kMost);
  PairPositions at;
  const auto flush = [&] {
    if (at.count && b.dictionary.strided)
      analysis_strided(b, at);
    else if (at.count)
      pair_atoms<kAtoms>(b, at, 0, pairs.weights);
    at.count = 0;
  };
  for (int row = begin, found = 0; row < end; row += 2) {
    float* rows = b.combined + found * size;
    if (row + 1 == end || !combine_rows(b, row, rows)) {
      analysis_rows(b, row, row + 1 == end ? end : row + 2);
      continue;
    }
    for (int column = 0; column < b.shape.code_width; column += kLanes) {
      const int left = b.shape.code_width - column, lanes = left < kLanes ? left : kLanes;
      at.at[at.count] = {row, column, lanes};
      at.code[at.count] = b.epilogue.code.row(row) + column;
      at.base[at.count] = b.epilogue.base ? b.epilogue.base.row(row) + column : nullptr;
      at.support[at.count] = b.epilogue.support ? b.epilogue.support.row(row) + column : nullptr;
      at.rows[at.count++] = rows + column;
      if (at.count == most) flush();
    }
    if (++found == kPairsAtATime) {
      flush();
      found = 0;
    }
  }
  flush();
}

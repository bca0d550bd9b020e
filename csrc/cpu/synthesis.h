// Image rows from code rows, with the residual as the epilogue.
//
// Code rows are spread over the image rows that see them, two at a time: the turned around filter of pairs.h. With the
// codes c0, c1 of a pair, products are made of c0 - c1, c0 + c1, c0 and c1, and each is added to the rows of which the
// analysis reads a combination, in the same proportion, with the sign of the residual x - A z. A row begins with the
// image's and waits in the residual's own place until the last code row that it sees has been added.
//
// Positions where a pair gives NaN or infinity are computed row by row: differences would spread them.

// A vector of `lanes` pixels of one phase, in all image rows that see the code rows `row` and row + 1.
struct PixelPosition {
  int row, column, lanes;
};

// to[m][v] = the sum over atoms and kernel columns of M weights * the codes first[v] + Sign * second[v].
template <int M, int V, int Sign>
static inline void spread_registers(const SynthesisBlock& b, const float* const (&first)[V],
                                    const float* const (&second)[V], int columns, const float* weights, Vec* to) {
  const int64_t channel_stride = b.code.channel_stride;
  Vec sums[M][V];
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sums[m][v] = Vec{};
  for (int k = 0; k < b.shape.atoms; ++k) {
    for (int c = 0; c < columns; ++c, weights += M) {
      const int64_t offset = k * channel_stride - c;
      Vec w[M];
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) w[m] = splat(weights[m]);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) {
        Vec z = load(first[v] + offset);
        if (Sign > 0) z += load(second[v] + offset);
        if (Sign < 0) z -= load(second[v] + offset);
        hold(z);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) sums[m][v] += w[m] * z;
      }
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) to[m * V + v] = sums[m][v];
}

// Adds the first `count` products of one position, `step` vectors apart from channel to channel, to the image's rows.
template <int M, bool Whole>
static inline void add_to_rows(const SynthesisBlock& b, const SpreadTaps& taps, int count, int phase,
                               const PixelPosition& at, const Vec* products, int step) {
  // Copies: the stores below cannot alias them.
  const Plane residual = b.epilogue.residual;
  const PairRow* pair = taps.list;
  const PairRow* const end = pair + count;
  const int height = b.shape.height, lanes = at.lanes, first = at.row * b.shape.stride_height - b.shape.top;
  const int64_t column = phase * residual.channel_stride + at.column;
  const int64_t channel_stride = b.shape.stride_width * residual.channel_stride;
  for (; pair < end; ++pair, products += M * step) {
    const float sign = pair->sign;
    const int row = first + pair->row, other = first + pair->other;
    if (row >= 0 && row < height) {
      float* to = residual.row(row) + column;
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m, to += channel_stride)
        store_partial(to, load(to) + products[m * step], Whole ? kLanes : lanes);
    }
    if (sign != 0 && other >= 0 && other < height) {
      float* to = residual.row(other) + column;
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m, to += channel_stride)
        store_partial(to, load(to) + sign * products[m * step], Whole ? kLanes : lanes);
    }
  }
}

// Whether vector v of each of `count` groups of V is finite, and so are sums of them; all vectors for v = -1.
template <int V>
static inline bool is_finite(const Vec* products, int count, int v) {
  Vec check = {};
  for (int i = 0; i < count; ++i, products += V) {
    if (v >= 0)
      check += 0 * (kHeadroom * products[v]);
    else
#pragma GCC unroll 16
      for (int all = 0; all < V; ++all) check += 0 * (kHeadroom * products[all]);
  }
  return sum(check) == 0;
}

// The products of V positions of one phase, M channels of them.
template <int M, int V>
static void spread(const SynthesisBlock& b, const SpreadTaps& taps, const float* weights, int phase,
                   const PixelPosition* at) {
  constexpr int kMost = 2 * kMostKernelRows;
  const Shape& s = b.shape;
  const int columns = s.columns_of(phase);
  const int64_t size = static_cast<int64_t>(s.atoms) * columns * M;
  const float *first[V], *second[V];
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) {
    first[v] = b.code.row(at[v].row) + at[v].column;
    second[v] = (at[v].row + 1 < s.code_height ? b.code.row(at[v].row + 1) : b.zeros) + at[v].column;
  }
  Vec products[kMost * M * V];
  const int both = taps.differences + taps.sums, last = both + taps.upper;
  for (int i = 0; i < taps.rows(); ++i) {
    const float* w = weights + (i < taps.distinct ? i : i - taps.distinct) * size;
    Vec* to = products + i * M * V;
    if (i < taps.differences)
      spread_registers<M, V, -1>(b, first, second, columns, w, to);
    else if (i < both)
      spread_registers<M, V, 1>(b, first, second, columns, w, to);
    else
      spread_registers<M, V, 0>(b, i < last ? first : second, first, columns, w, to);
  }
  const SpreadTaps& rows = b.dictionary.row_by_row;
  const bool finite = taps.list == rows.list || is_finite<V>(products, taps.rows() * M, -1);
  for (int v = 0; v < V; ++v) {
    // A last row that has no second: its products are of zeros, which an infinite atom makes NaN.
    const bool lone = taps.list == rows.list && at[v].row + 1 == s.code_height;
    const int count = taps.rows() - (lone ? taps.lower : 0);
    if (!finite && !is_finite<V>(products, taps.rows() * M, v))
      spread<M, 1>(b, rows, rows.phase_weights(s, phase), phase, at + v);
    else if (at[v].lanes == kLanes)
      add_to_rows<M, true>(b, taps, count, phase, at[v], products + v, V);
    else
      add_to_rows<M, false>(b, taps, count, phase, at[v], products + v, V);
  }
}

template <int M, int V>
static void spread_positions(const SynthesisBlock& b, int phase, const PixelPosition* at, int count) {
  const SpreadTaps& taps = b.dictionary.spread;
  const float* weights = taps.phase_weights(b.shape, phase);
  int done = 0;
  for (; done + V <= count; done += V) spread<M, V>(b, taps, weights, phase, at + done);
  if constexpr (V > 1) {
    if (done < count) spread_positions<M, V / 2>(b, phase, at + done, count - done);
  }
}

static void spread_channels(const SynthesisBlock& b, int phase, const PixelPosition* at, int count) {
  switch (b.shape.channels) {
    case 1:
      return spread_positions<1, kLonePixels>(b, phase, at, count);
    case 2:
      return spread_positions<2, kPixels>(b, phase, at, count);
    case 3:
      return spread_positions<3, kPixels>(b, phase, at, count);
    default:
      return spread_positions<4, kPixels / 2>(b, phase, at, count);
  }
}

// Adds the pairs in code rows [begin, end).
static void spread_pairs(const SynthesisBlock& b, int begin, int end) {
  const Shape& s = b.shape;
  constexpr int kMost = 64;
  PixelPosition at[kMost];
  for (int phase = 0; phase < s.stride_width; ++phase) {
    const int origin = s.phase_begin(phase), width = s.phase_count(phase);
    int count = 0;
    for (int row = begin; row < end; row += 2) {
      for (int column = 0; column < width; column += kLanes) {
        const int left = width - column;
        at[count++] = {row, origin + column, left < kLanes ? left : kLanes};
        if (count == kMost) {
          spread_channels(b, phase, at, count);
          count = 0;
        }
      }
    }
    if (count) spread_channels(b, phase, at, count);
  }
}

// What is left to do with a row that all its codes have been added to.
static void finish_row(const SynthesisBlock& b, int row) {
  const SynthesisEpilogue e = b.epilogue;
  float* residual = e.residual.row(row);
  for (int64_t i = 0; i < e.residual.row_stride; i += kLanes) {
    Vec value = load(residual + i);
    if (e.mask) store(residual + i, value *= load(e.mask.row(row) + i));
    if (e.total) store(e.total.row(row) + i, load(e.total.row(row) + i) + value);
  }
}

// Image rows up to `end`, of which those up to at.finished are there.
static void synthesis(const SynthesisBlock& b, SynthesisRows& at, int end) {
  const Shape& s = b.shape;
  const int codes = whole_pairs(s, s.codes_of(end));
  const int seen = s.pixels_of(codes);
  const SynthesisEpilogue& e = b.epilogue;
  for (const int rows = seen > end ? seen : end; at.begun < rows; ++at.begun) {
    float* row = e.residual.row(at.begun);
    const float* image = e.image ? e.image.row(at.begun) : b.zeros;
    for (int64_t i = 0; i < e.residual.row_stride; i += kLanes) store(row + i, load(image + i));
  }
  if (at.codes < codes) {
    spread_pairs(b, at.codes, codes);
    at.codes = codes;
  }
  for (; at.finished < end; ++at.finished)
    if (e.mask || e.total) finish_row(b, at.finished);
}

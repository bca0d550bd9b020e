// Image rows from code rows, with the residual as the epilogue.
//
// Code rows are spread over the image rows that see them, two at a time: the turned around filter of pairs.h. With the
// codes c0, c1 of a pair, products are made of c0 - 2 c1, c0 - part c1, c0 + c1, c0 and c1, and each is added to the
// rows of which the analysis reads a combination, in the same proportion, with the sign of the residual x - A z. A row
// begins with the image's and waits in the residual's own place until the last code row that it sees has been added.
//
// Positions where a pair gives NaN or infinity are computed row by row: differences would spread them.
//
// Products are made where the codes lie, of each kernel column by itself, and shifted when they are summed: one shift
// for all the atoms. Where they would leave a cache they are made where the pixels lie, of shifted codes.
// Where the dictionary is not finite, zeros beside the codes are multiplied in one way and not in the other: which
// pixels at the borders are NaN depends on it.

// A vector of `lanes` pixels of one phase, in all image rows that see the code rows `row` and row + 1.
struct PixelPosition {
  int row, column, lanes;
};

// Vectors of codes in one row of each pair, and where the products of theirs go.
struct SpreadPosition {
  const float *first, *second;
  float* products;
};

// Kernel columns that are multiplied at once, where they are by themselves.
constexpr int kColumns = kRegisters == 32 ? 4 : 2;

// Atoms whose products are added up in a row: a sum of sums is more exact. Products of several columns are as many as
// those of more atoms, and tiles have more of them to combine.
static inline int atoms_to_spread(const Shape& s, bool apart) {
  return apart ? 64 : std::clamp((s.atoms + 1) / 2, 8, 32);
}

// V vectors' products with M channels, of C kernel columns each by itself, or for C = 0 of the sum of all `columns`; of
// the atoms [atom, end), added to those of the atoms before them.
template <int M, int C, int V, Codes Kind>
static inline void multiply_codes(const SynthesisBlock& b, const SpreadPosition* at, int columns, const float* weights,
                                  int64_t to, int atom, int end) {
  constexpr int kProducts = (C ? C : 1) * M;
  constexpr bool kHoldsWeights = kProducts < V;  // And takes one vector of codes after the other, or the other way.
  const int64_t channel_stride = b.code.channel_stride, stride = b.products.channel_stride;
  const int passes = C ? 1 : columns, step = C ? columns * M : M;
  const float part = b.dictionary.spread.part;
  const float *first[V], *second[V];
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) {
    first[v] = at[v].first;
    second[v] = at[v].second;
  }
  Vec sums[kProducts][V];
#pragma GCC unroll 16
  for (int i = 0; i < kProducts; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sums[i][v] = Vec{};
  weights += int64_t{atom} * columns * M;
  for (int k = atom; k < end; ++k) {
    for (int c = 0; c < passes; ++c, weights += step) {
      const int64_t offset = k * channel_stride - c;
      Vec w[kProducts];
      if (kHoldsWeights) {
#pragma GCC unroll 4
        for (int i = 0; i < kProducts; ++i) w[i] = splat(weights[i]);
      }
      Vec z[V];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) {
        z[v] = codes_of<Kind>(first[v] + offset, second[v] + offset, part);
        hold(z[v]);
        if (!kHoldsWeights) continue;
#pragma GCC unroll 4
        for (int i = 0; i < kProducts; ++i) sums[i][v] += w[i] * z[v];
      }
      if (kHoldsWeights) continue;
#pragma GCC unroll 16
      for (int i = 0; i < kProducts; ++i) {
        w[i] = splat(weights[i]);
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) sums[i][v] += w[i] * z[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kProducts; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      float* const out = at[v].products + to + i * stride;
      store(out, atom ? load(out) + sums[i][v] : sums[i][v]);
    }
}

// Of how many columns products are kept: of each by itself, or their sum.
static inline int kept_columns(const Shape& s, int phase) { return keeps_columns(s) ? s.columns_of(phase) : 1; }

// All products of `count` vectors with the columns from `first` on.
template <int M, int C, int V>
static void multiply_positions(const SynthesisBlock& b, const SpreadPosition* at, int count, int phase, int first) {
  const SpreadTaps& taps = b.dictionary.spread;
  const int columns = b.shape.columns_of(phase), some = atoms_to_spread(b.shape, C > 0);
  const int64_t size = static_cast<int64_t>(b.shape.atoms) * columns * M, stride = M * b.products.channel_stride;
  const float* weights = taps.phase_weights(b.shape, phase) + first * M;
  for (; count >= V; count -= V, at += V) {
    for (int i = 0; i < taps.rows(); ++i) {
      const float* w = weights + (i < taps.distinct ? i : i - taps.distinct) * size;
      const int64_t to = (i * kept_columns(b.shape, phase) + first) * stride;
      for (int atom = 0; atom < b.shape.atoms; atom += some) {
        const int end = std::min(atom + some, b.shape.atoms);
        if (i < taps.difference())
          multiply_codes<M, C, V, Codes::steep>(b, at, columns, w, to, atom, end);
        else if (i < taps.sum())
          multiply_codes<M, C, V, Codes::difference>(b, at, columns, w, to, atom, end);
        else if (i < taps.first())
          multiply_codes<M, C, V, Codes::sum>(b, at, columns, w, to, atom, end);
        else if (i < taps.second())
          multiply_codes<M, C, V, Codes::first>(b, at, columns, w, to, atom, end);
        else
          multiply_codes<M, C, V, Codes::second>(b, at, columns, w, to, atom, end);
      }
    }
  }
  if constexpr (V > 1) {
    if (count) multiply_positions<M, C, V / 2>(b, at, count, phase, first);
  }
}

// The largest power of two of vectors whose sums of `products` each find registers.
constexpr int vectors_of(int products) {
  int vectors = 8;
  while (vectors > 1 && vectors * products > kSpreadSums) vectors /= 2;
  return vectors;
}

template <int M>
static void multiply_columns(const SynthesisBlock& b, const SpreadPosition* at, int count, int phase) {
  if (!keeps_columns(b.shape)) return multiply_positions<M, 0, vectors_of(M)>(b, at, count, phase, 0);
  const int columns = b.shape.columns_of(phase);
  for (int first = 0; first < columns; first += kColumns) {
    switch (std::min(columns - first, kColumns)) {
      case 1:
        multiply_positions<M, 1, vectors_of(M)>(b, at, count, phase, first);
        break;
      case 2:
        multiply_positions<M, 2, vectors_of(2 * M)>(b, at, count, phase, first);
        break;
      case 3:
        if constexpr (kColumns > 2) multiply_positions<M, 3, vectors_of(3 * M)>(b, at, count, phase, first);
        break;
      default:
        if constexpr (kColumns > 2) multiply_positions<M, 4, vectors_of(4 * M)>(b, at, count, phase, first);
    }
  }
}

// The image at one position, by rows counted from the first that a pair of code rows sees. A copy of what it takes to
// find them: stores to them cannot alias it.
struct ImageRows {
  const Plane residual;
  const int64_t column, channel_stride;
  const int first, height, lanes;

  ImageRows(const SynthesisBlock& b, int phase, const PixelPosition& at)
      : residual(b.epilogue.residual),
        column(phase * residual.channel_stride + at.column),
        channel_stride(b.shape.stride_width * residual.channel_stride),
        first(at.row * b.shape.stride_height - b.shape.top),
        height(b.shape.height),
        lanes(at.lanes) {}

  template <int M>
  inline void add(int row, const Vec (&values)[M]) const {
    if (first + row < 0 || first + row >= height) return;
    float* to = residual.row(first + row) + column;
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m, to += channel_stride) store_partial(to, load(to) + values[m], lanes);
  }
};

// The products of one position, each kernel row by itself.
template <int M>
static __attribute__((noinline)) void spread_row_by_row(const SynthesisBlock& b, int phase, const PixelPosition& at) {
  const Shape& s = b.shape;
  const SpreadTaps& rows = b.dictionary.row_by_row;
  const int columns = s.columns_of(phase);
  const int64_t size = static_cast<int64_t>(s.atoms) * columns * M;
  const bool lone = at.row + 1 == s.code_height;
  const int count = rows.rows() - (lone ? rows.lower : 0);
  const ImageRows image(b, phase, at);
  for (int i = 0; i < count; ++i) {
    const float* weights = rows.phase_weights(s, phase) + i % rows.distinct * size;
    const float* codes = b.code.row(at.row + i / rows.distinct);
    Vec sums[M] = {};
    for (int k = 0; k < s.atoms; ++k, codes += b.code.channel_stride)
      for (int c = 0; c < columns; ++c)
        for (int m = 0; m < M; ++m) sums[m] += splat(*weights++) * load_within(codes, at.column - c, s.code_width);
    image.add(rows.list[i].rows[0], sums);
  }
}

// total = the products of M channels at one position, shifted and summed over the kernel's columns.
template <int M>
static inline void sum_columns(const float* products, int64_t stride, int columns, Vec (&total)[M]) {
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) total[m] = load(products + m * stride);
  for (int c = 1; c < columns; ++c)
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) total[m] += load(products + (c * M + m) * stride - c);
}

// Adds what one pair of rows adds to one position of the image, if all of it is finite and so are sums of it.
template <int M>
static inline bool add_pair(const SynthesisBlock& b, const float* products, int phase, const PixelPosition& at) {
  const SpreadTaps taps = b.dictionary.spread;
  const int columns = kept_columns(b.shape, phase), rows = b.shape.kernel_height + b.shape.stride_height;
  const int64_t stride = b.products.channel_stride;
  Vec sums[2 * kMostKernelRows][M];
  for (int row = 0; row < rows; ++row)
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) sums[row][m] = Vec{};
  Vec checks[M] = {};  // None waits for another.
  for (const Combination *c = taps.list, *end = c + taps.rows(); c < end; ++c, products += columns * M * stride) {
    Vec total[M];
    sum_columns(products, stride, columns, total);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) checks[m] += 0 * (kHeadroom * total[m]);
    for (int j = 0; j < c->count; ++j)
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) sums[c->rows[j]][m] += c->factors[j] * total[m];
  }
  for (int m = 1; m < M; ++m) checks[0] += checks[m];
  if (sum(checks[0]) != 0) return false;
  const ImageRows image(b, phase, at);
  for (int row = 0; row < rows; ++row) image.add(row, sums[row]);
  return true;
}

// The same where each kernel row is by itself.
template <int M>
static inline void add_rows_of(const SynthesisBlock& b, const float* products, int phase, const PixelPosition& at) {
  const SpreadTaps taps = b.dictionary.spread;
  // A last row that has no second: its products are of zeros, which an infinite atom makes NaN.
  const int count = taps.rows() - (at.row + 1 == b.shape.code_height ? taps.lower : 0);
  const int columns = kept_columns(b.shape, phase);
  const int64_t stride = b.products.channel_stride;
  const ImageRows image(b, phase, at);
  for (int i = 0; i < count; ++i, products += columns * M * stride) {
    Vec total[M];
    sum_columns(products, stride, columns, total);
    image.add(taps.list[i].rows[0], total);
  }
}

// Adds the pairs in code rows [begin, end).
template <int M>
static void spread_pairs(const SynthesisBlock& b, int begin, int end) {
  constexpr int kMost = 64;
  const Shape& s = b.shape;
  const bool single = b.dictionary.spread.list == b.dictionary.row_by_row.list;
  const int step = 2 * pairs_to_spread(s, kLanes);
  SpreadPosition at[kMost];
  for (int phase = 0; phase < s.stride_width; ++phase) {
    const int origin = s.phase_begin(phase), width = s.phase_count(phase);
    if (width == 0 || s.columns_of(phase) == 0) continue;  // There are no such pixels, or no code sees them.
    const int from = keeps_columns(s) ? 0 : origin, to = keeps_columns(s) ? s.code_width : origin + width;
    for (int row = begin; row < end; row += step) {
      const int stop = end - row < step ? end : row + step;
      int count = 0;
      for (int upper = row; upper < stop; upper += 2) {
        const float* one = b.code.row(upper);
        const float* other = upper + 1 < s.code_height ? b.code.row(upper + 1) : b.zeros;
        float* products = b.products.row((upper - row) / 2);
        for (int column = from; column < to; column += kLanes) {
          at[count++] = {one + column, other + column, products + column};
          if (count < kMost) continue;
          multiply_columns<M>(b, at, count, phase);
          count = 0;
        }
      }
      multiply_columns<M>(b, at, count, phase);
      for (int upper = row; upper < stop; upper += 2) {
        const float* products = b.products.row((upper - row) / 2);
        for (int column = 0; column < width; column += kLanes) {
          const int left = width - column;
          const PixelPosition pixels{upper, origin + column, left < kLanes ? left : kLanes};
          if (single)
            add_rows_of<M>(b, products + pixels.column, phase, pixels);
          else if (!add_pair<M>(b, products + pixels.column, phase, pixels))
            spread_row_by_row<M>(b, phase, pixels);
        }
      }
    }
  }
}

template <int M>
static void spread_tiles(const SynthesisBlock& b, int begin, int end);

static void spread_channels(const SynthesisBlock& b, int begin, int end) {
  const bool tiles{b.dictionary.tiles};
  switch (b.shape.channels) {
    case 1:
      return tiles ? spread_tiles<1>(b, begin, end) : spread_pairs<1>(b, begin, end);
    case 2:
      return tiles ? spread_tiles<2>(b, begin, end) : spread_pairs<2>(b, begin, end);
    case 3:
      return tiles ? spread_tiles<3>(b, begin, end) : spread_pairs<3>(b, begin, end);
    default:
      return spread_pairs<4>(b, begin, end);
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
    spread_channels(b, at.codes, codes);
    at.codes = codes;
  }
  for (; at.finished < end; ++at.finished)
    if (e.mask || e.total) finish_row(b, at.finished);
}

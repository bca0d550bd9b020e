// Code rows from image rows one by one, with the FISTA step as the epilogue.

// One position: a vector of `lanes` codes in row `row`, from column `column` on.
struct CodePosition {
  int row, column, lanes;
};

// Sums begin with minus the threshold where they alone are compared with it: a code is then of the threshold's size or
// zero. With a base it may be much larger than all of the products, and sums would be rounded as it is.
static inline bool starts_below(const AnalysisEpilogue& e) {
  return e.shrink == Shrink::positive && !e.threshold_map && !e.base;
}

// Where an atom's codes at a position lie in a plane, if there is one.
static inline float* codes_at(const Plane& plane, const CodePosition& at, int atom = 0) {
  return plane ? plane.row(at.row) + atom * plane.channel_stride + at.column : nullptr;
}

// One vector of atom k in an epilogue that shrinks.
static inline Vec next_code(const AnalysisEpilogue& e, Vec value, int k, const CodePosition& at) {
  const auto from = [&](const Plane& plane) { return codes_at(plane, at, k); };
  if (e.base) value += load(from(e.base));
  const Vec threshold = starts_below(e)   ? Vec{}
                        : e.threshold_map ? load_partial(from(e.threshold_map), at.lanes)
                                          : splat(e.threshold[k]);
  Vec shrunk = positive_part(value - threshold);
  if (e.shrink == Shrink::both) shrunk -= positive_part(-value - threshold);
  if (!e.divide) return shrunk;
  const Vec divisor = e.divisor_map ? load_partial(from(e.divisor_map), at.lanes) : splat(e.divisor[k]);
  return shrunk / divisor;
}

// Any epilogue without maps and division. Copies: the stores cannot alias them.
static inline void finish_plain(AnalysisEpilogue e, const CodePosition& at, int atom, int atoms, const Vec* sums,
                                int step) {
  const auto from = [&](const Plane& plane) { return codes_at(plane, at, atom); };
  float *code = from(e.code), *point = from(e.point);
  const float *base = from(e.base), *support = from(e.support), *previous = from(e.previous);
  const bool below = starts_below(e);
  for (int a = 0; a < atoms; ++a, sums += step) {
    Vec value = at.lanes == kLanes ? *sums : first_lanes(*sums, at.lanes);
    if (base) {
      value += load(base);
      base += e.base.channel_stride;
    }
    if (e.shrink == Shrink::none) {
      if (support) value = on_support(value, load(support));
      support += e.support.channel_stride;
    } else {
      const Vec least = below ? Vec{} : splat(e.threshold[atom + a]);
      const Vec negative = e.shrink == Shrink::both ? positive_part(-value - least) : Vec{};
      value = positive_part(value - least) - negative;
    }
    store(code, value);
    code += e.code.channel_stride;
    if (!point) continue;
    store(point, value + e.beta * (value - load(previous)));
    point += e.point.channel_stride;
    previous += e.previous.channel_stride;
  }
}

// Any epilogue, from sums in memory. Where a vector reaches beyond the codes, it stores zeros.
static __attribute__((noinline)) void finish_codes(const AnalysisEpilogue& e, const CodePosition* at, int vectors,
                                                   int atom, int atoms, const Vec* sums) {
  for (int v = 0; v < vectors; ++v) {
    const CodePosition position = at[v];
    if (!e.threshold_map && !e.divide) {
      finish_plain(e, position, atom, atoms, sums + v, vectors);
      continue;
    }
    float* code = e.code.row(position.row) + position.column;
    for (int a = 0; a < atoms; ++a) {
      const int k = atom + a;
      const Vec value = first_lanes(next_code(e, sums[a * vectors + v], k, position), position.lanes);
      store(code + k * e.code.channel_stride, value);
      if (e.point) {
        const Vec before = load(e.previous.row(position.row) + k * e.previous.channel_stride + position.column);
        store(e.point.row(position.row) + k * e.point.channel_stride + position.column,
              value + e.beta * (value - before));
      }
    }
  }
}

// max(sum + base - threshold, 0), or sum + base.
static inline bool is_usual(const AnalysisEpilogue& e) {
  if (e.threshold_map || e.divide || e.point) return false;
  return e.shrink == Shrink::positive || (e.shrink == Shrink::none && e.base);
}

// Where the first of some atoms' V vectors lie, `Together` of them beside each other, and the atoms' thresholds: none
// where nothing is shrunk.
template <int V, int Together = 1>
struct Rows {
  static constexpr int kPlaces = V / Together;
  const int first;
  float* code[kPlaces];
  const float *base[kPlaces], *support[kPlaces], *threshold;
  const int64_t code_stride, base_stride, support_stride;  // From atom to atom.
  const int64_t code_row, base_row, support_row;           // From row to row.
  const bool has_base, has_support, stream;                // Streamed codes go around the caches.

  Rows(const AnalysisEpilogue& e, int atom)
      : first(atom),
        threshold(e.threshold ? e.threshold + atom : nullptr),
        code_stride(e.code.channel_stride),
        base_stride(e.base.channel_stride),
        support_stride(e.support.channel_stride),
        code_row(e.code.row_stride),
        base_row(e.base.row_stride),
        support_row(e.support.row_stride),
        has_base(e.base),
        has_support(e.support),
        stream(e.stream) {}

  // Where those of atom 0 lie.
  inline __attribute__((always_inline)) void place(int at, float* to, const float* from, const float* kept) {
    code[at] = to + first * code_stride;
    base[at] = from + first * base_stride;
    support[at] = kept + first * support_stride;
  }

  // One row further down.
  inline __attribute__((always_inline)) void next() {
#pragma GCC unroll 8
    for (int at = 0; at < kPlaces; ++at) {
      code[at] += code_row;
      base[at] += base_row;
      support[at] += support_row;
    }
  }

  float* code_at(int a, int v) const { return code[v / Together] + v % Together * kLanes + a * code_stride; }
  Vec base_at(int a, int v) const { return load(base[v / Together] + v % Together * kLanes + a * base_stride); }
  Vec support_at(int a, int v) const {
    return load(support[v / Together] + v % Together * kLanes + a * support_stride);
  }
};

// Zeros in sums beyond the codes, which epilogues keep: bases are zero there, too, and no threshold is below zero.
template <int A, int V>
static inline __attribute__((always_inline)) void keep_codes(const CodePosition* at, Vec (&sums)[A][V]) {
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v)
    if (at[v].lanes != kLanes) {
#pragma GCC unroll 8
      for (int a = 0; a < A; ++a) sums[a][v] = first_lanes(sums[a][v], at[v].lanes);
    }
}

// The usual epilogue.
template <int A, int V, int Together>
static inline void finish_rows(const Rows<V, Together>& rows, Vec (&sums)[A][V]) {
  if (!rows.threshold) {
#pragma GCC unroll 8
    for (int a = 0; a < A; ++a)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        Vec value = sums[a][v] + rows.base_at(a, v);
        if (rows.has_support) value = on_support(value, rows.support_at(a, v));
        store(rows.code_at(a, v), value);
      }
    return;
  }
  constexpr int kPlaces = V / Together;
  if (rows.has_base) {
    const float* base[kPlaces];
#pragma GCC unroll 8
    for (int place = 0; place < kPlaces; ++place) base[place] = rows.base[place];
#pragma GCC unroll 8
    for (int a = 0; a < A; ++a) {
      const Vec threshold = splat(rows.threshold[a]);
#pragma GCC unroll 8
      for (int place = 0; place < kPlaces; ++place) {
#pragma GCC unroll 8
        for (int t = 0; t < Together; ++t) {
          Vec& sum = sums[a][place * Together + t];
          sum = sum + load(base[place] + t * kLanes) - threshold;
        }
        base[place] += rows.base_stride;
        hold(base[place]);
      }
    }
  }
  float* code[kPlaces];
#pragma GCC unroll 8
  for (int place = 0; place < kPlaces; ++place) code[place] = rows.code[place];
#pragma GCC unroll 8
  for (int a = 0; a < A; ++a) {
#pragma GCC unroll 8
    for (int place = 0; place < kPlaces; ++place) {
#pragma GCC unroll 8
      for (int t = 0; t < Together; ++t) {
        const Vec value = positive_part(sums[a][place * Together + t]);
        if (rows.stream)
          stream(code[place] + t * kLanes, value);
        else
          store(code[place] + t * kLanes, value);
      }
      code[place] += rows.code_stride;
      hold(code[place]);
    }
  }
}

// Any epilogue, `below` rows below the positions.
template <int A, int V>
static inline void finish_any(const AnalysisEpilogue& e, const CodePosition* at, int below, int atom,
                              const Vec (&sums)[A][V]) {
  CodePosition positions[V];
  for (int v = 0; v < V; ++v) positions[v] = {at[v].row + below, at[v].column, at[v].lanes};
  Vec stored[A][V];  // A copy: an array whose address is taken does not live in registers.
#pragma GCC unroll 8
  for (int a = 0; a < A; ++a)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) stored[a][v] = sums[a][v];
  finish_codes(e, positions, V, atom, A, &stored[0][0]);
}

template <int A, int V>
static inline void finish(const AnalysisEpilogue& e, const CodePosition* at, int atom, Vec (&sums)[A][V]) {
  if (!is_usual(e)) {
    finish_any<A, V>(e, at, 0, atom, sums);
    return;
  }
  Rows<V> rows(e, atom);
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v)
    rows.place(v, codes_at(e.code, at[v]), codes_at(e.base, at[v]), codes_at(e.support, at[v]));
  keep_codes(at, sums);
  finish_rows(rows, sums);
}

// The taps of one kernel row, see PackedDictionary.
struct Taps {
  int count;
  const int* offsets;
};

// sums[a][v] += weights[a] * the pixels of vector v at a tap; or = where sums begin with it.
template <int A, int V>
static inline __attribute__((always_inline)) void add_product(int offset, const float* const (&pixels)[V],
                                                              const float*& weights, Vec (&sums)[A][V],
                                                              bool begins = false) {
  Vec x[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    x[v] = load(pixels[v] + offset);
    hold(x[v]);
  }
#pragma GCC unroll 8
  for (int a = 0; a < A; ++a) {
    const Vec w = splat(weights[a]);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[a][v] = begins ? w * x[v] : sums[a][v] + w * x[v];
  }
  weights += A;
}

// The same over the taps of one row.
template <int A, int V>
static inline void add_products(const Taps& taps, const float* const (&pixels)[V], const float*& weights,
                                Vec (&sums)[A][V]) {
  for (int t = 0; t < taps.count; ++t) add_product<A, V>(taps.offsets[t], pixels, weights, sums);
}

template <int A, int V>
static inline void clear(Vec (&sums)[A][V]) {
#pragma GCC unroll 8
  for (int a = 0; a < A; ++a)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[a][v] = Vec{};
}

// What sums begin with.
template <int A, int V>
static inline void start(const AnalysisEpilogue& e, int atom, Vec (&sums)[A][V]) {
  clear(sums);
  if (!starts_below(e)) return;
#pragma GCC unroll 8
  for (int a = 0; a < A; ++a)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[a][v] = Vec{} - e.threshold[atom + a];
}

// A atoms x V vectors in registers; the sum runs over kernel rows, then channels, phases and columns.
template <int A, int V>
static void analysis_registers(const AnalysisBlock& b, const CodePosition* at, int atom, const float* weights) {
  const Shape& s = b.shape;
  const Taps taps{b.dictionary.row_taps, b.dictionary.offsets};
  Vec sums[A][V];
  start(b.epilogue, atom, sums);
  for (int dy = 0; dy < s.kernel_height; ++dy) {
    const float* pixels[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const int h = at[v].row * s.stride_height + dy - s.top;
      pixels[v] = (h >= 0 && h < s.height ? b.image.row(h) : b.zeros) + at[v].column;
    }
    add_products<A, V>(taps, pixels, weights, sums);
  }
  finish<A, V>(b.epilogue, at, atom, sums);
}

template <int A, int V>
static void analysis_positions(const AnalysisBlock& b, const CodePosition* at, int count, int atom,
                               const float* weights) {
  int done = 0;
  for (; done + V <= count; done += V) analysis_registers<A, V>(b, at + done, atom, weights);
  if constexpr (V > 1) {
    if (done < count) analysis_positions<A, smaller(V - 1)>(b, at + done, count - done, atom, weights);
  }
}

template <int A>
static void analysis_atoms(const AnalysisBlock& b, const CodePosition* at, int count, int atom, const float* weights) {
  const int per_atom = b.dictionary.row_taps * b.shape.kernel_height;
  const int atoms = b.shape.atoms;
  for (; atom + A <= atoms; atom += A, weights += A * per_atom)
    analysis_positions<A, kVectors>(b, at, count, atom, weights);
  if constexpr (A > 1) {
    if (atom < atoms) analysis_atoms<smaller(A - 1)>(b, at, count, atom, weights);
  }
}

// Code rows [begin, end), one by one.
static void analysis_rows(const AnalysisBlock& b, int begin, int end) {
  constexpr int kMost = 64;
  CodePosition at[kMost];
  int count = 0;
  for (int row = begin; row < end; ++row) {
    for (int column = 0; column < b.shape.code_width; column += kLanes) {
      const int left = b.shape.code_width - column;
      at[count++] = {row, column, left < kLanes ? left : kLanes};
      if (count == kMost) {
        analysis_atoms<kAtoms>(b, at, count, 0, b.dictionary.analysis);
        count = 0;
      }
    }
  }
  if (count) analysis_atoms<kAtoms>(b, at, count, 0, b.dictionary.analysis);
}

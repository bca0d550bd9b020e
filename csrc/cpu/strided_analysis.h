// Code rows from tiles of atoms of seven columns at stride 2; see strided_tiles.h.

// Atoms x the two columns of one vector of tiles, of one kind of combined rows at a time.
constexpr int kStridedAtoms = 8;

// The kinds of combined rows, in their order.
constexpr int kRowKinds = 5;

// What one kind of rows, `rows` of them, adds to the even and the odd columns of A atoms; `least` is subtracted from
// both.
template <int M, int A>
static __attribute__((noinline)) void strided_kind(const float* pixels, const float* weights, int rows,
                                                   const float* least, Vec (&to_even)[A], Vec (&to_odd)[A]) {
  constexpr int kSize = kAnalysisProducts<M>, kShared = 4 * M;
  const auto add = [](const float* x, const float* w, Vec(&sums)[A]) __attribute__((always_inline)) {
    Vec value = load(x);
    hold(value);
#pragma GCC unroll 8
    for (int a = 0; a < A; ++a) sums[a] += splat(w[a]) * value;
  };
  Vec even[A], odd[A];  // Copies that live in registers.
#pragma GCC unroll 8
  for (int a = 0; a < A; ++a) {
    even[a] = least ? Vec{} - least[a] : Vec{};
    odd[a] = Vec{};
  }
  // Sums and differences first, from which both columns are made, then what each has for itself.
  for (int i = 0; i < rows; ++i) {
    const float *x = pixels + i * kSize * kLanes, *w = weights + i * kSize * A;
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m, x += 4 * kLanes, w += 4 * A) {
      add(x, w, even);
      add(x + 3 * kLanes, w + 3 * A, odd);
      add(x + kLanes, w + A, even);
      add(x + 2 * kLanes, w + 2 * A, even);
    }
  }
#pragma GCC unroll 8
  for (int a = 0; a < A; ++a) add_and_subtract(even[a], odd[a]);
  for (int i = 0; i < rows; ++i) {
    const float *x = pixels + (i * kSize + kShared) * kLanes, *w = weights + (i * kSize + kShared) * A;
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m, x += 6 * kLanes, w += 6 * A) {
#pragma GCC unroll 3
      for (int j = 0; j < 3; ++j) {
        add(x + j * kLanes, w + j * A, even);
        add(x + (3 + j) * kLanes, w + (3 + j) * A, odd);
      }
    }
  }
#pragma GCC unroll 8
  for (int a = 0; a < A; ++a) {
    to_even[a] = even[a];
    to_odd[a] = odd[a];
  }
}

// The codes of the vectors `low` and, unless that is alone, the next one of the first rows of pairs, and of the rows
// below them.
template <int M, int A>
static void strided_atoms(const AnalysisBlock& b, const PairPositions& positions, int low, bool alone,
                          const float* pixels, int atom, const float* weights) {
  const AnalysisEpilogue& e = b.epilogue;
  const PairedTaps& pairs = b.dictionary.pairs;
  const int counts[kRowKinds] = {pairs.steep, pairs.differences, pairs.sums, pairs.upper, pairs.lower};
  const int64_t per_atom = static_cast<int64_t>(pairs.rows()) * kAnalysisProducts<M>;
  const CodePosition* const at = positions.at + low;
  const bool usual = is_usual(e) && at[0].lanes == kLanes && !alone && at[1].lanes == kLanes;
  for (; atom + A <= b.shape.atoms; atom += A, weights += A * per_atom) {
    Vec kinds[kRowKinds][2][A];
    const float *x = pixels, *w = weights;
    for (int kind = 0; kind < kRowKinds; ++kind) {
      const float* least = kind == 2 && starts_below(e) ? e.threshold + atom : nullptr;
      strided_kind<M, A>(x, w, counts[kind], least, kinds[kind][0], kinds[kind][1]);
      x += counts[kind] * kAnalysisProducts<M> * kLanes;
      w += counts[kind] * kAnalysisProducts<M> * A;
    }
    Vec sums[2][2][A];  // [row][column]
#pragma GCC unroll 2
    for (int column = 0; column < 2; ++column)
#pragma GCC unroll 8
      for (int a = 0; a < A; ++a) {
        const Vec steep = kinds[0][column][a];
        const Vec difference = kinds[1][column][a] + 1.5f * steep, sum = kinds[2][column][a] - 0.5f * steep;
        sums[0][column][a] = sum + difference + kinds[3][column][a];
        sums[1][column][a] = sum - difference + kinds[4][column][a];
      }
    Rows<2> rows(e, atom);
    for (int v = 0; v < (alone ? 1 : 2); ++v) {
      rows.code[v] = positions.code[low + v] + atom * rows.code_stride;
      rows.base[v] = positions.base[low + v] + atom * rows.base_stride;
      rows.support[v] = positions.support[low + v] + atom * rows.support_stride;
    }
    for (int below = 0; below < 2; ++below) {
      Vec codes[A][2];
#pragma GCC unroll 8
      for (int a = 0; a < A; ++a) {
        codes[a][0] = low_columns(sums[below][0][a], sums[below][1][a]);
        codes[a][1] = high_columns(sums[below][0][a], sums[below][1][a]);
      }
      if (alone) {
        Vec lone[A][1];
        for (int a = 0; a < A; ++a) lone[a][0] = codes[a][0];
        finish_any<A, 1>(e, at, below, atom, lone);
      } else if (usual) {
        finish_rows<A, 2>(rows, codes);
      } else {
        finish_any<A, 2>(e, at, below, atom, codes);
      }
      for (int v = 0; v < (alone ? 1 : 2); ++v) {
        rows.code[v] += e.code.row_stride;
        rows.base[v] += e.base.row_stride;
        rows.support[v] += e.support.row_stride;
      }
    }
  }
  if constexpr (A > 1) {
    if (atom < b.shape.atoms) strided_atoms<M, smaller(A - 1)>(b, positions, low, alone, pixels, atom, weights);
  }
}

template <int M>
static void strided_vectors(const AnalysisBlock& b, const PairPositions& at) {
  const int rows = b.dictionary.pairs.rows();
  float* pixels = strided_room(b.dictionary, b.combined, kPairsAtATime, b.image.row_stride);
  for (int low = 0; low < at.count; low += 2) {
    const bool alone = low + 1 == at.count;
    const float* high = at.rows[alone ? low : low + 1];
    combine_for_analysis<M>(b.dictionary.offsets, at.rows[low], high, rows, b.image.row_stride, pixels);
    strided_atoms<M, kStridedAtoms>(b, at, low, alone, pixels, 0, b.dictionary.strided);
  }
}

// Vectors of the first rows of pairs and of those below them.
static void analysis_strided(const AnalysisBlock& b, const PairPositions& at) {
  switch (b.shape.channels) {
    case 1:
      return strided_vectors<1>(b, at);
    case 2:
      return strided_vectors<2>(b, at);
    default:
      return strided_vectors<3>(b, at);
  }
}

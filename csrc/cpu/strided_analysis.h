// Code rows from tiles of atoms of seven columns at stride 2; see strided_tiles.h.

// Registers: atoms x vectors of tiles x the two columns of each, of one kind of combined rows at a time.
constexpr int kStridedAtoms = kRegisters == 32 ? 8 : 3, kStridedVectors = kRegisters == 32 ? 1 : 2;

// The kinds of combined rows, in their order.
constexpr int kRowKinds = 5;

// What one kind of rows, `rows` of them, adds to the even and the odd columns of A atoms; `least` is subtracted from
// both.
template <int M, int A, int V>
static __attribute__((noinline)) void strided_kind(const float* pixels, const float* weights, int rows,
                                                   const float* least, Vec (&to_even)[A][V], Vec (&to_odd)[A][V]) {
  constexpr int kStep = V * kLanes;
  Vec even[A][V], odd[A][V];  // Copies that live in registers.
  each_sum<A, V>([&](int a, int v) {
    even[a][v] = least ? Vec{} - least[a] : Vec{};
    odd[a][v] = Vec{};
  });
  const float *row_pixels, *row_weights;
  const auto each_row = [&](const auto& products) __attribute__((always_inline)) {
    row_pixels = pixels;
    row_weights = weights;
    for (int i = 0; i < rows; ++i) {
      products();
      row_pixels += kStridedProducts<M> * kStep;
      row_weights += kStridedProducts<M> * A;
    }
  };
  const auto add = [&](int product, Vec(&sums)[A][V]) __attribute__((always_inline)) {
    const float* w = row_weights + product * A;
    const float* x[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) x[v] = row_pixels + v * kLanes;
    add_product<A, V>(product * kStep, x, w, sums);
  };
  // First what both columns are made from, then what each has for itself.
  each_row([&] {
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) add(m, odd);
  });
  each_sum<A, V>([&](int a, int v) {
    even[a][v] -= odd[a][v];
    odd[a][v] *= 2.0f;
  });
  each_row([&] {
#pragma GCC unroll 8
    for (int j = 0; j < 2 * M; ++j) {
      add(3 * M + j, even);
      add(M + j, odd);
    }
  });
  each_sum<A, V>([&](int a, int v) {
    const Vec difference = odd[a][v];
    odd[a][v] = even[a][v] - 0.5f * difference;
    even[a][v] += difference;
  });
  each_row([&] {
#pragma GCC unroll 8
    for (int j = 0; j < 2 * M; ++j) {
      add(5 * M + j, even);
      add(7 * M + j, odd);
    }
  });
  each_sum<A, V>([&](int a, int v) {
    to_even[a][v] = even[a][v];
    to_odd[a][v] = odd[a][v];
  });
}

// The codes of `count` vectors, at most two of each of V vectors of tiles, from `low` on, and of the rows below them.
template <int M, int A, int V>
static void strided_atoms(const AnalysisBlock& b, const PairPositions& positions, int low, int count,
                          const float* pixels, int atom, const float* weights) {
  const AnalysisEpilogue& e = b.epilogue;
  const PairedTaps& pairs = b.dictionary.pairs;
  const int counts[kRowKinds] = {pairs.steep, pairs.differences, pairs.sums, pairs.upper, pairs.lower};
  const int64_t per_atom = static_cast<int64_t>(pairs.rows()) * kStridedProducts<M>;
  const CodePosition* const at = positions.at + low;
  const bool usual = is_usual(e) && count == 2 * V;
  for (; atom + A <= b.shape.atoms; atom += A, weights += A * per_atom) {
    Vec kinds[kRowKinds][2][A][V];
    const float *x = pixels, *w = weights;
    for (int kind = 0; kind < kRowKinds; ++kind) {
      const float* least = kind == 2 && starts_below(e) ? e.threshold + atom : nullptr;
      strided_kind<M, A, V>(x, w, counts[kind], least, kinds[kind][0], kinds[kind][1]);
      x += counts[kind] * kStridedProducts<M> * V * kLanes;
      w += counts[kind] * kStridedProducts<M> * A;
    }
    Rows<2 * V> rows(e, atom);
    for (int v = 0; v < 2 * V; ++v) {
      const int one = low + (v < count ? v : 0);
      rows.place(v, positions.code[one], positions.base[one], positions.support[one]);
    }
    for (int below = 0; below < 2; ++below) {
      Vec codes[A][2 * V];
      each_sum<A, V>([&](int a, int v) {
        Vec columns[2];
#pragma GCC unroll 2
        for (int column = 0; column < 2; ++column) {
          const Vec steep = kinds[0][column][a][v];
          const Vec difference = kinds[1][column][a][v] + 2.0f * steep, sum = kinds[2][column][a][v] - steep;
          columns[column] = (below ? sum - pairs.part * difference : sum + difference) + kinds[3 + below][column][a][v];
        }
        codes[a][2 * v] = low_columns(columns[0], columns[1]);
        codes[a][2 * v + 1] = high_columns(columns[0], columns[1]);
      });
      if (usual) {
        keep_codes(at, codes);
        finish_rows(rows, codes);
      } else {
        for (int v = 0; v < count; ++v) {
          Vec lone[A][1];
          for (int a = 0; a < A; ++a) lone[a][0] = codes[a][v];
          finish_any<A, 1>(e, at + v, below, atom, lone);
        }
      }
      rows.next();
    }
  }
  if constexpr (A > 1) {
    if (atom < b.shape.atoms) strided_atoms<M, smaller(A - 1), V>(b, positions, low, count, pixels, atom, weights);
  }
}

template <int M>
static void strided_vectors(const AnalysisBlock& b, const PairPositions& at) {
  constexpr int kMost = 2 * kStridedVectors;
  const int rows = b.dictionary.pairs.rows();
  float* pixels = strided_room(b.dictionary, b.combined, kPairsAtATime, b.image.row_stride);
  for (int low = 0; low < at.count; low += kMost) {
    const int count = std::min(at.count - low, kMost);
    for (int v = 0; v < count; v += 2) {
      const float* const first = at.rows[low + v];
      combine_columns<M>(b.dictionary.offsets, first, v + 1 < count ? at.rows[low + v + 1] : first, rows,
                         b.image.row_stride, pixels + v / 2 * kLanes, kStridedVectors * kLanes,
                         int64_t{kStridedProducts<M>} * kStridedVectors * kLanes);
    }
    strided_atoms<M, kStridedAtoms, kStridedVectors>(b, at, low, count, pixels, 0, b.dictionary.strided);
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

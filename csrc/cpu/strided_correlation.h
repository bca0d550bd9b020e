// The dictionary's gradient from tiles of atoms of seven columns at stride 2; see strided_tiles.h: sums over tiles of
// what the image and what the codes combine to.

// Lines at once: what they combine to in one row stays in a first-level cache, 24 KiB and 3.5 of codes that wait with
// AVX2, 27 KiB and 4 with AVX-512. The more they are, the less often sums are added up.
constexpr int kLines = kRegisters == 32 ? 16 : 28;
static_assert(kLines * kLanes <= kStridedRoom);

// Two vectors of the codes of a pair of rows each: [vector][row].
struct StridedLine {
  const float* codes[2][2];
};

// The kinds of products of the columns of a combined row, as bits in their order, and how many there are of a channel.
// 16 registers hold the sums of one kind, 32 those of two.
constexpr int kSteepColumns = 1, kDifferenceColumns = 2, kSumColumns = 4, kUpperColumns = 8, kLowerColumns = 16;

constexpr int products_of(int columns) {
  int count = columns & 1;
  for (columns /= 2; columns; columns /= 2) count += 2 * (columns & 1);
  return count;
}

// The codes of one kind in the even and odd columns of a line's tiles, of A atoms.
template <int A, Codes Kind>
static inline __attribute__((always_inline)) void strided_codes(const StridedLine& line, float part, int64_t offset,
                                                                int64_t stride, Vec (&even)[A], Vec (&odd)[A]) {
#pragma GCC unroll 4
  for (int a = 0; a < A; ++a, offset += stride) {
    Vec low = codes_of<Kind>(line.codes[0][0] + offset, line.codes[0][1] + offset, part);
    Vec high = codes_of<Kind>(line.codes[1][0] + offset, line.codes[1][1] + offset, part);
    hold(low);
    hold(high);
    even[a] = even_columns(low, high);
    odd[a] = odd_columns(low, high);
    hold(even[a]);
    hold(odd[a]);
  }
}

// Codes that wait in the first-level cache: [line][even and odd columns][A] vectors.
template <int A>
using KeptCodes = float[kLines][2][A][kLanes];

// Adds some kinds of columns, beside each other, of one combined row of A atoms.
template <int A, int M, int Columns>
static __attribute__((noinline)) void strided_sums(const KeptCodes<A>& kept, int count, const float* pixels,
                                                   double* to) {
  constexpr int kSize = kStridedProducts<M>, kSums = M * products_of(Columns);
  constexpr int kLowest = Columns & -Columns, kBegin = M * products_of(kLowest - 1);
  static_assert((Columns & (Columns + kLowest)) == 0);
  pixels += kBegin * kLanes;
  Vec sums[kSums][A];
#pragma GCC unroll 32
  for (int i = 0; i < kSums; ++i)
#pragma GCC unroll 4
    for (int a = 0; a < A; ++a) sums[i][a] = Vec{};
  for (int line = 0; line < count; ++line, pixels += kSize * kLanes) {
    Vec even[A], odd[A];
#pragma GCC unroll 4
    for (int a = 0; a < A; ++a) {
      even[a] = load(kept[line][0][a]);
      odd[a] = load(kept[line][1][a]);
    }
    const auto add = [&](int columns, const auto& code) __attribute__((always_inline)) {
      if (!(Columns & columns)) return;
      const int first = M * products_of(columns - 1) - kBegin, many = M * products_of(columns);
      Vec value[A];
#pragma GCC unroll 4
      for (int a = 0; a < A; ++a) {
        value[a] = code(even[a], odd[a]);
        hold(value[a]);
      }
#pragma GCC unroll 16
      for (int i = 0; i < many; ++i) {
        Vec x = load(pixels + (first + i) * kLanes);
        if (A > 1) hold(x);
#pragma GCC unroll 4
        for (int a = 0; a < A; ++a) sums[first + i][a] += value[a] * x;
      }
    };
    add(kUpperColumns, [](Vec even, Vec) { return even; });
    add(kLowerColumns, [](Vec, Vec odd) { return odd; });
    add(kSteepColumns, [](Vec even, Vec odd) { return even - 2.0f * odd; });
    add(kSumColumns, [](Vec even, Vec odd) { return even + odd; });
    add(kDifferenceColumns, [](Vec even, Vec odd) { return even - 0.5f * odd; });
  }
  add_lanes(sums, to + kBegin, kSize);
}

// Adds all columns of one combined row of A atoms.
template <int A, int M, Codes Kind>
static __attribute__((noinline)) void strided_products(const CorrelationBlock& b, const StridedLine* lines, int count,
                                                       const float* pixels, int atom, double* to) {
  const int64_t stride = b.code.channel_stride, offset = atom * stride;
  const float part = b.dictionary.pairs.part;
  alignas(kLanes * 4) KeptCodes<A> kept;
  for (int line = 0; line < count; ++line) {
    Vec even[A], odd[A];
    strided_codes<A, Kind>(lines[line], part, offset, stride, even, odd);
#pragma GCC unroll 4
    for (int a = 0; a < A; ++a) {
      store(kept[line][0][a], even[a]);
      store(kept[line][1][a], odd[a]);
    }
  }
  if constexpr (kRegisters == 32) {
    strided_sums<A, M, kUpperColumns | kLowerColumns>(kept, count, pixels, to);
    strided_sums<A, M, kSteepColumns | kDifferenceColumns>(kept, count, pixels, to);
    strided_sums<A, M, kSumColumns>(kept, count, pixels, to);
  } else {
    strided_sums<A, M, kUpperColumns>(kept, count, pixels, to);
    strided_sums<A, M, kLowerColumns>(kept, count, pixels, to);
    strided_sums<A, M, kSteepColumns>(kept, count, pixels, to);
    strided_sums<A, M, kSumColumns>(kept, count, pixels, to);
    strided_sums<A, M, kDifferenceColumns>(kept, count, pixels, to);
  }
}

// Atoms at once.
constexpr int kStridedSums = 2;

// One kind of combined rows of all atoms: what the image combines to in one of them stays in the first-level cache.
template <int M, Codes Kind>
static void strided_rows(const CorrelationBlock& b, const StridedLine* lines, int count, int row, int end,
                         const float* pixels) {
  constexpr int64_t kSize = kStridedProducts<M>;
  for (; row < end; ++row) {
    const float* const from = pixels + row * kLines * kSize * kLanes;
    double* const to = b.sums + row * kSize * b.shape.atoms;
    int atom = 0;
    for (; atom + kStridedSums <= b.shape.atoms; atom += kStridedSums)
      strided_products<kStridedSums, M, Kind>(b, lines, count, from, atom, to + kSize * atom);
    for (; atom < b.shape.atoms; ++atom) strided_products<1, M, Kind>(b, lines, count, from, atom, to + kSize * atom);
  }
}

template <int M>
static void strided_lines(const CorrelationBlock& b, int begin, int end) {
  const PairedTaps& pairs = b.dictionary.pairs;
  const int64_t width = b.image.row_stride, size = pairs.rows() * width;
  float* const pixels = strided_room(b.dictionary, b.combined, kStridedPairs, width);
  StridedLine lines[kLines];
  int count = 0;
  const auto flush = [&] {
    strided_rows<M, Codes::steep>(b, lines, count, 0, pairs.difference(), pixels);
    strided_rows<M, Codes::difference>(b, lines, count, pairs.difference(), pairs.sum(), pixels);
    strided_rows<M, Codes::sum>(b, lines, count, pairs.sum(), pairs.first(), pixels);
    strided_rows<M, Codes::first>(b, lines, count, pairs.first(), pairs.second(), pixels);
    strided_rows<M, Codes::second>(b, lines, count, pairs.second(), pairs.rows(), pixels);
    count = 0;
  };
  const float* waiting = nullptr;  // The combined rows of a vector that has no partner yet.
  const auto add_line = [&](const float* low, const float* high) {
    combine_columns<M>(b.dictionary.offsets, low, high, pairs.rows(), width,
                       pixels + count * kStridedProducts<M> * kLanes, kLanes,
                       int64_t{kLines} * kStridedProducts<M> * kLanes);
    waiting = nullptr;
    if (++count == kLines) flush();
  };
  for (int row = begin; row < end; row += 2) {
    // The rows of the pair before may still be waited for.
    float* rows = b.combined + row / 2 % kStridedPairs * size;
    combine_rows(b, row, rows);
    for (int column = 0; column < b.shape.code_width; column += kLanes) {
      // Of a last row that has no second nothing is added.
      const float* second = row + 1 < end ? b.code.row(row + 1) + column : b.zeros;
      auto& codes = lines[count].codes[waiting ? 1 : 0];
      codes[0] = b.code.row(row) + column;
      codes[1] = second;
      if (waiting)
        add_line(waiting, rows + column);
      else
        waiting = rows + column;
    }
  }
  if (waiting) {
    lines[count].codes[1][0] = lines[count].codes[1][1] = b.zeros;
    add_line(waiting, waiting);
  }
  if (count) flush();
}

// Adds the positions of code rows [begin, end).
static void correlation_strided(const CorrelationBlock& b, int begin, int end) {
  switch (b.shape.channels) {
    case 1:
      return strided_lines<1>(b, begin, end);
    case 2:
      return strided_lines<2>(b, begin, end);
    default:
      return strided_lines<3>(b, begin, end);
  }
}

// The dictionary's gradient from tiles of atoms of seven columns at stride 2; see strided_tiles.h: sums over tiles of
// what the image and what the codes combine to.

// Two vectors of the codes of a pair of rows each: [vector][row].
struct StridedLine {
  const float* codes[2][2];
};

// Adds one combined row of an atom, that of the codes of one kind.
template <int M, Codes Kind>
static __attribute__((noinline)) void strided_products(const CorrelationBlock& b, const StridedLine* line, int count,
                                                       const float* pixels, int atom, double* to) {
  constexpr int kSize = kCorrelationProducts<M>, kShared = 5 * M;
  const int64_t stride = b.code.channel_stride, offset = atom * stride;
  Vec sums[kSize][1];
#pragma GCC unroll 32
  for (int i = 0; i < kSize; ++i) sums[i][0] = Vec{};
  for (const StridedLine* end = line + count; line < end; ++line, pixels += kSize * kLanes) {
    const auto codes_of = [&](int vector) {
      const float *first = line->codes[vector][0] + offset, *second = line->codes[vector][1] + offset;
      if (Kind == Codes::second) return load(second);
      Vec z = load(first);
      if (Kind == Codes::sum) z += load(second);
      if (Kind == Codes::difference) z -= load(second);
      if (Kind == Codes::steep) z -= 2.0f * load(second);
      return z;
    };
    Vec low = codes_of(0), high = codes_of(1);
    hold(low);
    hold(high);
    Vec even = even_columns(low, high), odd = odd_columns(low, high);
    hold(even);
    hold(odd);
    const auto add = [&](int first, int step, int products, Vec z) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int i = 0; i < products; ++i)
          sums[first + step * m + i][0] += z * load(pixels + (first + step * m + i) * kLanes);
    };
    add(kShared, 4, 2, even);
    add(kShared + 2, 4, 2, odd);
    add(0, 5, 1, even - 2.0f * odd);
    add_and_subtract(even, odd);
    add(3, 5, 2, even);
    add(1, 5, 2, odd);
  }
  add_lanes(sums, to + int64_t{kSize} * atom, kSize);
}

// One kind of combined rows of all atoms: what the image combines to in one of them stays in the first-level cache.
template <int M, Codes Kind>
static void strided_rows(const CorrelationBlock& b, const StridedLine* lines, int count, int row, int end,
                         const float* pixels) {
  constexpr int64_t kSize = kCorrelationProducts<M>;
  for (; row < end; ++row)
    for (int atom = 0; atom < b.shape.atoms; ++atom)
      strided_products<M, Kind>(b, lines, count, pixels + row * kStridedLines * kSize * kLanes, atom,
                                b.sums + row * kSize * b.shape.atoms);
}

template <int M>
static void strided_lines(const CorrelationBlock& b, int begin, int end) {
  const PairedTaps& pairs = b.dictionary.pairs;
  const int64_t width = b.image.row_stride, size = pairs.rows() * width;
  float* const pixels = strided_room(b.dictionary, b.combined, kStridedPairs, width);
  StridedLine lines[kStridedLines];
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
    combine_for_correlation<M>(b.dictionary.offsets, low, high, pairs.rows(), width,
                               pixels + count * kCorrelationProducts<M> * kLanes,
                               int64_t{kStridedLines} * kCorrelationProducts<M> * kLanes);
    waiting = nullptr;
    if (++count == kStridedLines) flush();
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

// The dictionary's gradient: sums over positions of image * code.
//
// Row by row, or two code rows at once: with the combined rows of the image of pairs.h and the codes c0, c1 of a pair,
// the sums of (c0 - 2 c1) * steep, (c0 - part c1) * difference, (c0 + c1) * sum, c0 * upper and c1 * lower are the
// gradients of the weights there, of which DictionaryPack::gradient makes those of the taps.

// What one line of products is made of: a row of the image, and a row of codes or two of them.
struct Line {
  const float *pixels, *code, *other;
};

// The lines of each row of a kernel, or of each combined row.
struct Lines {
  static constexpr int kMost = 2048;
  Line lines[kMost];
  int starts[2 * kMostKernelRows + 1];
};

// The stems whose taps are shifted together, of all channels or of each: those of one phase lie one after another.
static inline bool has_three_runs(const Shape& s) {
  return kShifts && s.channels == 3 && s.kernel_width == 3 && s.stride_width == 1;
}

static inline bool has_two_runs(const Shape& s) { return kShifts && s.kernel_width == 7 && s.stride_width == 2; }

// sums += codes * the pixels of a run of T taps, whose sums begin with `First`, from two aligned vectors.
template <int First, int T, int A, int Taps>
static inline void add_run(const float* pixels, const Vec (&codes)[A], Vec (&sums)[Taps][A]) {
  Vec next = load(pixels + kLanes);
  hold(next);
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
    Vec x = shifted(pixels, next, t);
    hold(x);
#pragma GCC unroll 16
    for (int a = 0; a < A; ++a) sums[First + t][a] += codes[a] * x;
  }
}

// Adds what the lanes of each sum add up to, those of the taps of one atom one after another.
template <int Taps, int A>
static inline __attribute__((always_inline)) void add_lanes(const Vec (&sums)[Taps][A], double* to, int64_t per_atom) {
  constexpr int kCount = Taps * A, kWhole = kCount / kLanes * kLanes, kLeft = kCount - kWhole;
  Vec rows[kWhole + kLanes];
#pragma GCC unroll 32
  for (int t = 0; t < Taps; ++t)
#pragma GCC unroll 32
    for (int a = 0; a < A; ++a) rows[a * Taps + t] = sums[t][a];
#pragma GCC unroll 32
  for (int i = kCount; i < kWhole + kLanes; ++i) rows[i] = Vec{};
  float totals[kCount];
#pragma GCC unroll 8
  for (int from = 0; from < kWhole; from += kLanes) store(totals + from, lane_sums<kLanes>(rows + from));
  if (kLeft)
    store_partial(totals + kWhole, lane_sums<(2 * kLeft > kLanes ? kLanes : kLanes / 2)>(rows + kWhole), kLeft);
#pragma GCC unroll 32
  for (int a = 0; a < A; ++a, to += per_atom)
    for (int t = 0; t < Taps; ++t) to[t] += totals[a * Taps + t];
}

// A atoms x T taps of one kernel row in registers: they share their row of the image. Runs: how many taps each of two
// or three runs has that are shifted together; none: each tap is loaded.
template <int A, int T, Codes Kind, int... Runs>
static __attribute__((noinline)) void correlation_registers(const CorrelationBlock& b, const Line* line,
                                                            const Line* end, int atom, int row, int tap) {
  int64_t offsets[T];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) offsets[t] = b.dictionary.offsets[tap + t];
  const int64_t channel_stride = b.code.channel_stride;
  const int columns = b.shape.code_width;
  const float part = b.dictionary.pairs.part;
  Vec sums[T][A];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 16
    for (int a = 0; a < A; ++a) sums[t][a] = Vec{};
  for (; line < end; ++line) {
    const float* codes = line->code + atom * channel_stride;
    const float* others = line->other + atom * channel_stride;
    const float* pixels = line->pixels;
    for (int column = 0; column < columns; column += kLanes, codes += kLanes, others += kLanes, pixels += kLanes) {
      const auto code = [&](int a) {
        Vec z = codes_of<Kind>(codes + a * channel_stride, others + a * channel_stride, part);
        hold(z);
        return z;
      };
      if constexpr (A > T) {
        Vec x[T];
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) x[t] = load(pixels + offsets[t]);
#pragma GCC unroll 16
        for (int a = 0; a < A; ++a) {
          const Vec z = code(a);
#pragma GCC unroll 16
          for (int t = 0; t < T; ++t) sums[t][a] += z * x[t];
        }
      } else {
        Vec z[A];
#pragma GCC unroll 16
        for (int a = 0; a < A; ++a) z[a] = code(a);
        if constexpr (sizeof...(Runs) > 0) {
          // The next atoms' codes.
          if (Kind == Codes::first) {
#pragma GCC unroll 16
            for (int a = 0; a < A; ++a) prefetch(codes + (A + a) * channel_stride);
          }
          constexpr int kRuns[] = {Runs..., 0}, kSecond = kRuns[0], kThird = kSecond + kRuns[1];
          add_run<0, kRuns[0]>(pixels + offsets[0], z, sums);
          add_run<kSecond, kRuns[1]>(pixels + offsets[kSecond], z, sums);
          if constexpr (kRuns[2] > 0) add_run<kThird, kRuns[2]>(pixels + offsets[kThird], z, sums);
        } else {
#pragma GCC unroll 16
          for (int t = 0; t < T; ++t) {
            Vec x = load(pixels + offsets[t]);
            hold(x);
#pragma GCC unroll 16
            for (int a = 0; a < A; ++a) sums[t][a] += z[a] * x;
          }
        }
      }
    }
  }
  const int64_t taps = b.dictionary.row_taps;
  add_lanes(sums, b.sums + (static_cast<int64_t>(row) * b.shape.atoms + atom) * taps + tap, taps);
}

// `taps` of one kernel row, at most T.
template <int A, int T, Codes Kind>
static void correlation_taps(const CorrelationBlock& b, const Lines& lines, int atom, int row, int tap, int taps) {
  if (taps == T) {
    const Line *line = lines.lines + lines.starts[row], *end = lines.lines + lines.starts[row + 1];
    if constexpr (kShifts && T == 9) {
      if (has_three_runs(b.shape)) return correlation_registers<A, T, Kind, 3, 3, 3>(b, line, end, atom, row, tap);
    }
    if constexpr (kShifts && T == 7) {
      if (has_two_runs(b.shape)) return correlation_registers<A, T, Kind, 4, 3>(b, line, end, atom, row, tap);
    }
    return correlation_registers<A, T, Kind>(b, line, end, atom, row, tap);
  }
  if constexpr (T > 1) correlation_taps<A, T - 1, Kind>(b, lines, atom, row, tap, taps);
}

// All taps of A atoms in rows [row, end). A row is cut into as few blocks as can be, of nearly one size.
template <int A, int T, Codes Kind>
static void correlation_rows(const CorrelationBlock& b, const Lines& lines, int atom, int row, int end) {
  const int taps = b.dictionary.row_taps, blocks = (taps + T - 1) / T;
  for (; row < end; ++row) {
    for (int block = 0; block < blocks; ++block) {
      const int tap = taps * block / blocks, next = taps * (block + 1) / blocks;
      correlation_taps<A, T, Kind>(b, lines, atom, row, tap, next - tap);
    }
  }
}

// All rows of A atoms, whose codes stay in the first cache.
template <int A, int T>
static void correlation_kinds(const CorrelationBlock& b, const Lines& lines, int atom) {
  const PairedTaps& pairs = b.dictionary.pairs;
  if (!b.combined) return correlation_rows<A, T, Codes::first>(b, lines, atom, 0, b.shape.kernel_height);
  correlation_rows<A, T, Codes::steep>(b, lines, atom, 0, pairs.difference());
  correlation_rows<A, T, Codes::difference>(b, lines, atom, pairs.difference(), pairs.sum());
  correlation_rows<A, T, Codes::sum>(b, lines, atom, pairs.sum(), pairs.first());
  correlation_rows<A, T, Codes::first>(b, lines, atom, pairs.first(), pairs.rows());
}

template <int A, int T>
static void correlation_atoms(const CorrelationBlock& b, const Lines& lines) {
  int atom = 0;
  for (; atom + A <= b.shape.atoms; atom += A) correlation_kinds<A, T>(b, lines, atom);
  for (; atom < b.shape.atoms; ++atom) correlation_kinds<1, T>(b, lines, atom);
}

// Lines of code rows [begin, end) for each kernel row; what lies outside the image adds nothing.
static void lines_of_rows(const CorrelationBlock& b, int begin, int end, Lines& lines) {
  const Shape& s = b.shape;
  int count = 0;
  for (int kernel_row = 0; kernel_row < s.kernel_height; ++kernel_row) {
    lines.starts[kernel_row] = count;
    for (int row = begin; row < end; ++row) {
      const int h = row * s.stride_height + kernel_row - s.top;
      if (h >= 0 && h < s.height) lines.lines[count++] = {b.image.row(h), b.code.row(row), b.zeros};
    }
  }
  lines.starts[s.kernel_height] = count;
}

// Lines of the pairs in code rows [begin, end) for each combined row. A last row that has no second adds nothing
// where the second is read alone, and beside it nothing is added.
static void lines_of_pairs(const CorrelationBlock& b, int begin, int end, Lines& lines) {
  const PairedTaps& pairs = b.dictionary.pairs;
  const int64_t width = b.image.row_stride, size = pairs.rows() * width;
  for (int row = begin; row < end; row += 2) combine_rows(b, row, b.combined + (row - begin) / 2 * size);
  const int second = pairs.second();
  int count = 0;
  for (int i = 0; i < pairs.rows(); ++i) {
    lines.starts[i] = count;
    for (int row = begin; row < end; row += 2) {
      const bool lone = row + 1 == end;
      const float* pixels = b.combined + (row - begin) / 2 * size + i * width;
      const float *code = b.code.row(row), *other = lone ? b.zeros : b.code.row(row + 1);
      if (i < second)
        lines.lines[count++] = {pixels, code, other};
      else if (!lone)
        lines.lines[count++] = {pixels, other, code};
    }
  }
  lines.starts[pairs.rows()] = count;
}

static void correlation_tiles(const CorrelationBlock& b, int begin, int end);

static void correlation_strided(const CorrelationBlock& b, int begin, int end);

// Adds the positions of code rows [begin, end).
static void correlation(const CorrelationBlock& b, int begin, int end) {
  if (b.dictionary.tiles) return correlation_tiles(b, begin, end);
  if (b.dictionary.strided) return correlation_strided(b, begin, end);
  const int rows = b.combined ? 2 * b.room : Lines::kMost / kMostKernelRows;
  for (; begin < end; begin += rows) {
    Lines lines;
    const int stop = begin + rows < end ? begin + rows : end;
    if (b.combined)
      lines_of_pairs(b, begin, stop, lines);
    else
      lines_of_rows(b, begin, stop, lines);
    if (b.dictionary.row_taps <= kRowTaps)
      correlation_atoms<kRowAtoms, kRowTaps>(b, lines);
    else
      correlation_atoms<kLongRowAtoms, kLongRowTaps>(b, lines);
  }
}

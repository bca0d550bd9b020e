// The dictionary's gradient: sums over positions of image * code.
//
// Row by row, or two code rows at once: with the combined rows of the image of pairs.h and the codes c0, c1 of a pair,
// the sums of (c0 - c1) * difference, (c0 + c1) * sum, c0 * upper and c1 * lower are the gradients of the weights
// there, of which DictionaryPack::gradient makes those of the taps.

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

// The pixels of a run of taps.
struct RunPixels {
  const float* pixels;
  const int64_t* offsets;
  Vec next;

  RunPixels(const float* row, const int64_t* taps) : pixels(row), offsets(taps), next() {
    if (!kShifts) return;
    next = load(pixels + offsets[0] + kLanes);
    hold(next);
  }

  Vec at(int tap) const {
    Vec x = kShifts ? shifted(pixels + offsets[0], next, tap) : load(pixels + offsets[tap]);
    hold(x);
    return x;
  }
};

// sums += codes * the pixels of a run of T taps, whose sums begin with `First`.
template <int First, int T, int A, int Taps>
static inline void add_run(const RunPixels& run, const Vec (&codes)[A], Vec (&sums)[Taps][A]) {
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
    const Vec x = run.at(t);
#pragma GCC unroll 16
    for (int a = 0; a < A; ++a) sums[First + t][a] += codes[a] * x;
  }
}

// Adds what the lanes of each sum add up to.
template <int Taps, int A>
static inline void add_lanes(const Vec (&sums)[Taps][A], float* to, int per_atom) {
  constexpr int kCount = Taps * A;
  float totals[kCount];
#pragma GCC unroll 16
  for (int from = 0; from < kCount; from += kLanes) {
    Vec rows[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = from + i < kCount ? sums[(from + i) / A][(from + i) % A] : Vec{};
    store_partial(totals + from, lane_sums(rows), kCount - from < kLanes ? kCount - from : kLanes);
  }
  for (int a = 0; a < A; ++a, to += per_atom)
    for (int t = 0; t < Taps; ++t) to[t] += totals[t * A + a];
}

// Whether runs of such lengths follow each other from `run` on.
template <int... Lengths>
static inline bool has_runs(const PackedDictionary& d, int run) {
  return run + static_cast<int>(sizeof...(Lengths)) <= d.run_count && ((d.runs[run++].taps == Lengths) && ...);
}

// A atoms x up to three runs of T1, T2 and T3 taps in registers: they share their row of the image. The codes are
// code + Sign * other.
template <int A, int Sign, int T1, int T2 = 0, int T3 = 0>
static void correlation_registers(const CorrelationBlock& b, const Line* line, const Line* end, int atom, int row,
                                  int run, int tap) {
  int64_t offsets[T1 + T2 + T3];
#pragma GCC unroll 16
  for (int t = 0; t < T1 + T2 + T3; ++t) {
    const Run& of = b.dictionary.runs[run + (t >= T1) + (t >= T1 + T2)];
    offsets[t] = of.offsets[t < T1 ? t : t < T1 + T2 ? t - T1 : t - T1 - T2];
  }
  const int64_t channel_stride = b.code.channel_stride;
  const int columns = b.shape.code_width;
  Vec sums[T1 + T2 + T3][A];
#pragma GCC unroll 16
  for (int t = 0; t < T1 + T2 + T3; ++t)
#pragma GCC unroll 16
    for (int a = 0; a < A; ++a) sums[t][a] = Vec{};
  for (; line < end; ++line) {
    const float* codes = line->code + atom * channel_stride;
    const float* others = line->other + atom * channel_stride;
    const float* pixels = line->pixels;
    for (int column = 0; column < columns; column += kLanes, codes += kLanes, others += kLanes, pixels += kLanes) {
      const auto code = [&](int a) {
        Vec z = load(codes + a * channel_stride);
        if (Sign > 0) z += load(others + a * channel_stride);
        if (Sign < 0) z -= load(others + a * channel_stride);
        hold(z);
        return z;
      };
      // The next atoms' codes.
      if (kShifts && Sign == 0) {
#pragma GCC unroll 16
        for (int a = 0; a < A; ++a) prefetch(codes + (A + a) * channel_stride);
      }
      if constexpr (T2 == 0 && A > T1) {
        const RunPixels run_pixels(pixels, offsets);
        Vec x[T1];
#pragma GCC unroll 4
        for (int t = 0; t < T1; ++t) x[t] = run_pixels.at(t);
#pragma GCC unroll 16
        for (int a = 0; a < A; ++a) {
          const Vec z = code(a);
#pragma GCC unroll 4
          for (int t = 0; t < T1; ++t) sums[t][a] += z * x[t];
        }
      } else {
        Vec z[A];
#pragma GCC unroll 16
        for (int a = 0; a < A; ++a) z[a] = code(a);
        add_run<0, T1>(RunPixels(pixels, offsets), z, sums);
        if constexpr (T2 > 0) add_run<T1, T2>(RunPixels(pixels, offsets + T1), z, sums);
        if constexpr (T3 > 0) add_run<T1 + T2, T3>(RunPixels(pixels, offsets + T1 + T2), z, sums);
      }
    }
  }
  const int taps = b.dictionary.row_taps;
  add_lanes(sums, b.sums + (static_cast<int64_t>(row) * b.shape.atoms + atom) * taps + tap, taps);
}

// All taps of A atoms in rows [row, end): run by run, but those of the usual stems, three runs of 3x3 and two of 7x7 at
// stride 2, at once.
template <int A, int Sign>
static void correlation_rows(const CorrelationBlock& b, const Lines& lines, int atom, int row, int end) {
  const PackedDictionary& d = b.dictionary;
  for (; row < end; ++row) {
    const Line *first = lines.lines + lines.starts[row], *last = lines.lines + lines.starts[row + 1];
    for (int run = 0, tap = 0; run < d.run_count;) {
      if constexpr (kShifts && A <= kThreeRunsAtoms) {
        if (has_runs<3, 3, 3>(d, run)) {
          correlation_registers<A, Sign, 3, 3, 3>(b, first, last, atom, row, run, tap);
          run += 3;
          tap += 9;
          continue;
        }
      }
      if constexpr (kShifts && A <= kTwoRunsAtoms) {
        if (has_runs<4, 3>(d, run)) {
          correlation_registers<A, Sign, 4, 3>(b, first, last, atom, row, run, tap);
          run += 2;
          tap += 7;
          continue;
        }
      }
      switch (d.runs[run].taps) {
        case 1:
          correlation_registers<A, Sign, 1>(b, first, last, atom, row, run, tap);
          break;
        case 2:
          correlation_registers<A, Sign, 2>(b, first, last, atom, row, run, tap);
          break;
        case 3:
          correlation_registers<A, Sign, 3>(b, first, last, atom, row, run, tap);
          break;
        default:
          correlation_registers<A, Sign, 4>(b, first, last, atom, row, run, tap);
      }
      tap += d.runs[run++].taps;
    }
  }
}

// All rows of A atoms, whose codes stay in the first cache.
template <int A>
static void correlation_kinds(const CorrelationBlock& b, const Lines& lines, int atom) {
  const PairedTaps& pairs = b.dictionary.pairs;
  if (!b.combined) return correlation_rows<A, 0>(b, lines, atom, 0, b.shape.kernel_height);
  const int both = pairs.differences + pairs.sums;
  correlation_rows<A, -1>(b, lines, atom, 0, pairs.differences);
  correlation_rows<A, 1>(b, lines, atom, pairs.differences, both);
  correlation_rows<A, 0>(b, lines, atom, both, pairs.rows());
}

template <int A>
static void correlation_atoms(const CorrelationBlock& b, const Lines& lines, int atom) {
  for (; atom + A <= b.shape.atoms; atom += A) correlation_kinds<A>(b, lines, atom);
  if constexpr (A > 1) {
    if (atom < b.shape.atoms) correlation_atoms<smaller(A - 1)>(b, lines, atom);
  }
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
  const int second = pairs.rows() - pairs.lower;
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

// Adds the positions of code rows [begin, end).
static void correlation(const CorrelationBlock& b, int begin, int end) {
  const int rows = b.combined ? 2 * b.room : Lines::kMost / kMostKernelRows;
  for (; begin < end; begin += rows) {
    Lines lines;
    const int stop = begin + rows < end ? begin + rows : end;
    if (b.combined)
      lines_of_pairs(b, begin, stop, lines);
    else
      lines_of_rows(b, begin, stop, lines);
    if (kShifts && has_runs<3, 3, 3>(b.dictionary, 0))
      correlation_atoms<kThreeRunsAtoms>(b, lines, 0);
    else if (kShifts && has_runs<4, 3>(b.dictionary, 0))
      correlation_atoms<kTwoRunsAtoms>(b, lines, 0);
    else
      correlation_atoms<kRunAtoms>(b, lines, 0);
  }
}

// The dictionary's gradient: sums over positions of image * code, one vector of partial sums per entry.

// A atoms x T taps of one kernel row in registers: they share their row of the image.
template <int A, int T>
static void correlation_registers(const CorrelationBlock& b, int begin, int end, int atom, int kernel_row, int tap) {
  const Shape& s = b.shape;
  int64_t offsets[T];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) offsets[t] = b.dictionary.offsets[tap + t];
  const int64_t channel_stride = b.code.channel_stride;
  const int columns = s.code_width;
  Vec sums[A][T];
#pragma GCC unroll 16
  for (int a = 0; a < A; ++a)
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) sums[a][t] = Vec{};
  for (int row = begin; row < end; ++row) {
    const int h = row * s.stride_height + kernel_row - s.top;
    if (h < 0 || h >= s.height) continue;
    const float* codes = b.code.row(row) + atom * channel_stride;
    const float* pixels = b.image.row(h);
    for (int column = 0; column < columns; column += kLanes, codes += kLanes, pixels += kLanes) {
      Vec z[A];
#pragma GCC unroll 16
      for (int a = 0; a < A; ++a) z[a] = load(codes + a * channel_stride);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) {
        Vec x = load(pixels + offsets[t]);
        hold(x);
#pragma GCC unroll 16
        for (int a = 0; a < A; ++a) sums[a][t] += z[a] * x;
      }
    }
  }
  const int first = kernel_row * b.dictionary.row_taps + tap;
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 16
    for (int a = 0; a < A; ++a) {
      float* to = b.sums + (static_cast<int64_t>(first + t) * s.atoms + atom + a) * kLanes;
      store(to, load(to) + sums[a][t]);
    }
  }
}

// `taps` of one kernel row, at most T.
template <int A, int T>
static void correlation_taps(const CorrelationBlock& b, int begin, int end, int atom, int kernel_row, int tap,
                             int taps) {
  if (taps == T) return correlation_registers<A, T>(b, begin, end, atom, kernel_row, tap);
  if constexpr (T > 1) correlation_taps<A, T - 1>(b, begin, end, atom, kernel_row, tap, taps);
}

// All taps of A atoms, whose codes stay in the first cache. A kernel row is cut into as few blocks as can be, of
// nearly one size.
template <int A, int T>
static void correlation_rows(const CorrelationBlock& b, int begin, int end, int atom) {
  const int taps = b.dictionary.row_taps, blocks = (taps + T - 1) / T;
  for (int kernel_row = 0; kernel_row < b.shape.kernel_height; ++kernel_row) {
    for (int block = 0; block < blocks; ++block) {
      const int tap = taps * block / blocks, next = taps * (block + 1) / blocks;
      correlation_taps<A, T>(b, begin, end, atom, kernel_row, tap, next - tap);
    }
  }
}

template <int A, int T>
static void correlation_atoms(const CorrelationBlock& b, int begin, int end) {
  int atom = 0;
  for (; atom + A <= b.shape.atoms; atom += A) correlation_rows<A, T>(b, begin, end, atom);
  for (; atom < b.shape.atoms; ++atom) correlation_rows<1, T>(b, begin, end, atom);
}

// Adds the positions of code rows [begin, end).
static void correlation(const CorrelationBlock& b, int begin, int end) {
  if (b.dictionary.row_taps <= kRowTaps)
    correlation_atoms<kRowAtoms, kRowTaps>(b, begin, end);
  else
    correlation_atoms<kLongRowAtoms, kLongRowTaps>(b, begin, end);
}

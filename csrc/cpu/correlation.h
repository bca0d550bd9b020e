// The dictionary's gradient: sums over positions of image * code, one vector of partial sums per entry.

// A atoms x T taps in registers. `tap` counts kernel rows x (channels x columns).
template <int A, int T>
static void correlation_registers(const CorrelationBlock& b, int begin, int end, int atom, int tap) {
  const Shape& s = b.shape;
  const int row_taps = b.dictionary.row_taps;
  int dy[T], offset[T];
  for (int t = 0; t < T; ++t) {
    dy[t] = (tap + t) / row_taps - s.top;
    offset[t] = b.dictionary.offsets[(tap + t) % row_taps];
  }
  Vec sums[A][T];
#pragma GCC unroll 8
  for (int a = 0; a < A; ++a)
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) sums[a][t] = Vec{};
  for (int row = begin; row < end; ++row) {
    const float* codes = b.code.row(row) + atom * b.code.channel_stride;
    const float* pixels[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const int h = row * s.stride_height + dy[t];
      pixels[t] = (h >= 0 && h < s.height ? b.image.row(h) : b.zeros) + offset[t];
    }
    for (int column = 0; column < s.code_width; column += kLanes) {
      Vec z[A];
#pragma GCC unroll 8
      for (int a = 0; a < A; ++a) z[a] = load(codes + a * b.code.channel_stride + column);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const Vec x = load(pixels[t] + column);
#pragma GCC unroll 8
        for (int a = 0; a < A; ++a) sums[a][t] += z[a] * x;
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 8
    for (int a = 0; a < A; ++a) {
      float* to = b.sums + (static_cast<int64_t>(tap + t) * s.atoms + atom + a) * kLanes;
      store(to, load(to) + sums[a][t]);
    }
  }
}

template <int A, int T>
static void correlation_taps(const CorrelationBlock& b, int begin, int end, int atom, int tap) {
  const int taps = b.shape.taps();
  for (; tap + T <= taps; tap += T) correlation_registers<A, T>(b, begin, end, atom, tap);
  if constexpr (T > 1) {
    if (tap < taps) correlation_taps<A, (T > 4 ? 3 : T > 2 ? 2 : 1)>(b, begin, end, atom, tap);
  }
}

template <int A>
static void correlation_atoms(const CorrelationBlock& b, int begin, int end, int atom) {
  for (; atom + A <= b.shape.atoms; atom += A)
    correlation_taps<A, kCorrelationTaps>(b, begin, end, atom, 0);
  if constexpr (A > 1) {
    if (atom < b.shape.atoms) correlation_atoms<smaller(A - 1)>(b, begin, end, atom);
  }
}

// Adds the positions of code rows [begin, end).
static void correlation(const CorrelationBlock& b, int begin, int end) {
  correlation_atoms<kCorrelationAtoms>(b, begin, end, 0);
}

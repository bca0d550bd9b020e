// Image rows from code rows, with the residual as the epilogue.

// One position: a vector of `lanes` pixels of one phase, in image row `row`.
struct PixelPosition {
  int row, column, lanes;
};

template <int M, int V>
static inline void finish_pixels(const SynthesisBlock& b, int phase, const PixelPosition* at, Vec (&sums)[M][V]) {
  const SynthesisEpilogue e = b.epilogue;  // A copy: the stores below cannot alias it.
  const int64_t phase_stride = b.dictionary.phase_stride;
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    const int row = at[v].row, lanes = at[v].lanes;
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const int64_t offset = (m * b.shape.stride_width + phase) * phase_stride + at[v].column;
      Vec value = sums[m][v];
      if (e.image)
        value = load(e.image.row(row) + offset) - value;
      else
        value *= e.scale;
      if (e.mask) value *= load(e.mask.row(row) + offset);
      store_partial(e.residual.row(row) + offset, value, lanes);
      if (e.total) {
        float* total = e.total.row(row) + offset;
        store_partial(total, load(total) + value, lanes);
      }
    }
  }
}

// M channels x V vectors in registers; the sum runs over atoms, then kernel rows, then columns.
template <int M, int V>
static void synthesis_registers(const SynthesisBlock& b, int row_phase, int phase, const PixelPosition* at) {
  const Shape& s = b.shape;
  const PhaseTaps& taps = b.dictionary.phase_taps(row_phase, phase);
  const int64_t channel_stride = b.code.channel_stride;
  const float* codes[kMostKernelRows * V];
  for (int r = 0; r < taps.rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const int i = (at[v].row + s.top - row_phase) / s.stride_height - r;
      codes[r * V + v] = (i >= 0 && i < s.code_height ? b.code.row(i) : b.zeros) + at[v].column;
    }
  }
  const float* weights = taps.weights;
  Vec sums[M][V];
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[m][v] = Vec{};
  for (int k = 0; k < s.atoms; ++k) {
    for (int r = 0; r < taps.rows; ++r) {
      for (int c = 0; c < taps.columns; ++c, weights += M) {
        const int64_t offset = k * channel_stride - c;
        Vec w[M];
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) w[m] = splat(weights[m]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
          Vec z = load(codes[r * V + v] + offset);
          hold(z);
#pragma GCC unroll 4
          for (int m = 0; m < M; ++m) sums[m][v] += w[m] * z;
        }
      }
    }
  }
  finish_pixels<M, V>(b, phase, at, sums);
}

template <int M, int V>
static void synthesis_positions(const SynthesisBlock& b, int row_phase, int phase, const PixelPosition* at, int count) {
  int done = 0;
  for (; done + V <= count; done += V) synthesis_registers<M, V>(b, row_phase, phase, at + done);
  if constexpr (V > 1) {
    if (done < count) synthesis_positions<M, V / 2>(b, row_phase, phase, at + done, count - done);
  }
}

static void synthesis_channels(const SynthesisBlock& b, int row_phase, int phase, const PixelPosition* at, int count) {
  switch (b.shape.channels) {
    case 1:
      return synthesis_positions<1, kPixels>(b, row_phase, phase, at, count);
    case 2:
      return synthesis_positions<2, kPixels>(b, row_phase, phase, at, count);
    case 3:
      return synthesis_positions<3, kPixels>(b, row_phase, phase, at, count);
    default:
      return synthesis_positions<4, kPixels / 2>(b, row_phase, phase, at, count);
  }
}

// Image rows [begin, end). Pixels that share their phases share their taps.
static void synthesis(const SynthesisBlock& b, int begin, int end) {
  const Shape& s = b.shape;
  constexpr int kMost = 64;
  PixelPosition at[kMost];
  for (int row_phase = 0; row_phase < s.stride_height; ++row_phase) {
    int first = begin;
    while ((first + s.top) % s.stride_height != row_phase) ++first;
    for (int phase = 0; phase < s.stride_width; ++phase) {
      const int origin = s.phase_begin(phase), width = s.phase_count(phase);
      int count = 0;
      for (int row = first; row < end; row += s.stride_height) {
        for (int column = 0; column < width; column += kLanes) {
          const int left = width - column;
          at[count++] = {row, origin + column, left < kLanes ? left : kLanes};
          if (count == kMost) {
            synthesis_channels(b, row_phase, phase, at, count);
            count = 0;
          }
        }
      }
      if (count) synthesis_channels(b, row_phase, phase, at, count);
    }
  }
}

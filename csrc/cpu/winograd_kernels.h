// F(2x2, 3x3): sixteen products in place of thirty-six (Winograd 1980; Lavin and Gray, CVPR 2016).
//
// A 4 x 4 tile d of the input gives 2 x 2 outputs Y = T' [(G g G') * (B' d B)] T with
//
//        | 1  0 -1  0 |       |  1    0    0  |        | 1  1  1  0 |
//   B' = | 0  1  1  0 |   G = | 1/2  1/2  1/2 |   T' = | 0  1 -1 -1 |
//        | 0 -1  1  0 |       | 1/2 -1/2  1/2 |
//        | 0  1  0 -1 |       |  0    0    1  |
//
// The product, summed over input channels, is one matrix product per point of the tile. Vectors run along
// channels, which are adjacent in channels_last memory. Included once per instruction set.

#if defined(CSC_ISA_AVX512)
constexpr int kTileBlock = 6, kPanelVectors = 4;
#elif defined(CSC_ISA_AVX2)
constexpr int kTileBlock = 6, kPanelVectors = 2;
#else
constexpr int kTileBlock = 4, kPanelVectors = 2;
#endif

// Columns 0..3 of B' applied to four vectors.
static inline void input_points(const Vec (&d)[4], Vec (&v)[4]) {
  v[0] = d[0] - d[2];
  v[1] = d[1] + d[2];
  v[2] = d[2] - d[1];
  v[3] = d[1] - d[3];
}

static inline void weight_points(const Vec (&g)[3], Vec (&u)[4]) {
  const Vec ends = g[0] + g[2];
  u[0] = g[0];
  u[1] = (ends + g[1]) * 0.5f;
  u[2] = (ends - g[1]) * 0.5f;
  u[3] = g[2];
}

// Where input `i`'s weights for the vector of outputs from `o` on begin, within one point.
static inline int64_t weight_offset(int inputs, int outputs, int i, int o) {
  const int whole = kPanelVectors * kLanes, panel = o / whole * whole;
  const int width = outputs - panel < whole ? outputs - panel : whole;
  return static_cast<int64_t>(panel) * inputs + static_cast<int64_t>(i) * width + (o - panel);
}

// G g G' of the atoms [begin, end), a range of whole vectors. The synthesis convolves with the atoms turned
// around, whose transform is the same numbers: turning g swaps the first and the last point of each axis.
static void winograd_weights(const WinogradDictionary& d, int begin, int end) {
  constexpr int turned[4] = {3, 1, 2, 0};
  const int atoms = (d.atoms + kLanes - 1) / kLanes * kLanes;
  const int channels = (d.channels + kLanes - 1) / kLanes * kLanes;
  const int64_t point = static_cast<int64_t>(atoms) * channels;
  for (int k0 = begin; k0 < end; k0 += kLanes) {
    for (int m0 = 0; m0 < channels; m0 += kLanes) {
      Vec block[kWinogradPoints][kLanes];
      for (int k = k0; k < k0 + kLanes; ++k) {
        float taps[9][kLanes] = {};
        if (k < d.atoms) {
          const int left = d.channels - m0, lanes = left < kLanes ? left : kLanes;
          const float* atom = d.dictionary + (static_cast<int64_t>(k) * d.channels + m0) * 9;
          for (int lane = 0; lane < lanes; ++lane)
            for (int tap = 0; tap < 9; ++tap) taps[tap][lane] = atom[lane * 9 + tap];
        }
        Vec rows[4][3];
        for (int c = 0; c < 3; ++c) {
          const Vec column[3] = {load(taps[c]), load(taps[3 + c]), load(taps[6 + c])};
          Vec points[4];
          weight_points(column, points);
          for (int r = 0; r < 4; ++r) rows[r][c] = points[r];
        }
        float* synthesis = d.synthesis + weight_offset(atoms, channels, k, m0);
        for (int r = 0; r < 4; ++r) {
          Vec points[4];
          weight_points(rows[r], points);
          for (int c = 0; c < 4; ++c) {
            store(synthesis + (4 * turned[r] + turned[c]) * point, -points[c]);
            block[4 * r + c][k - k0] = points[c];
          }
        }
      }
      for (int p = 0; p < kWinogradPoints; ++p) {
        transpose(block[p]);
        for (int m = 0; m < kLanes; ++m)
          store(d.analysis + p * point + weight_offset(channels, atoms, m0 + m, k0), block[p][m] * d.scale);
      }
    }
  }
}

// B' d B of one tile, all channels: point p at to + p * point_stride.
static void winograd_input(const WinogradShape& s, const Picture& input, int tile, float* to,
                           int64_t point_stride) {
  const int y = tile / s.tile_columns() * 2 - s.top, x = tile % s.tile_columns() * 2 - s.left;
  const bool inside = y >= 0 && x >= 0 && y + 4 <= s.height && x + 4 <= s.width;
  for (int m = 0; m < s.padded_inputs; m += kLanes) {
    const int left = s.inputs - m, lanes = left < kLanes ? left : kLanes;
    Vec rows[4][4];
    for (int c = 0; c < 4; ++c) {
      Vec d[4], v[4];
      for (int r = 0; r < 4; ++r) {
        const bool here = inside || (y + r >= 0 && y + r < s.height && x + c >= 0 && x + c < s.width);
        d[r] = here ? load_partial(input.data + (y + r) * input.row + (x + c) * input.column + m, lanes) : Vec{};
      }
      input_points(d, v);
      for (int r = 0; r < 4; ++r) rows[r][c] = v[r];
    }
    for (int r = 0; r < 4; ++r) {
      Vec v[4];
      input_points(rows[r], v);
      for (int c = 0; c < 4; ++c) store(to + (4 * r + c) * point_stride + m, v[c]);
    }
  }
}

template <int P>
static void winograd_panel(const float* from, const float* weights, int tiles, int inputs, int outputs, float* to) {
  for (int t = 0; t < tiles; t += kTileBlock) {
    const float* rows = from + static_cast<int64_t>(t) * inputs;
    Vec sums[kTileBlock][P];
#pragma GCC unroll 8
    for (int i = 0; i < kTileBlock; ++i)
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) sums[i][p] = Vec{};
    const float* u = weights;
    for (int m = 0; m < inputs; ++m, u += P * kLanes) {
      Vec w[P];
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) w[p] = load(u + p * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < kTileBlock; ++i) {
        const Vec v = splat(rows[i * static_cast<int64_t>(inputs) + m]);
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) sums[i][p] += v * w[p];
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kTileBlock; ++i)
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) store(to + static_cast<int64_t>(t + i) * outputs + p * kLanes, sums[i][p]);
  }
}

// to [tiles][outputs] = from [tiles][inputs] x weights, of one point.
static void winograd_multiply(const float* from, const float* weights, int tiles, int inputs, int outputs,
                              float* to) {
  for (int k = 0; k < outputs; k += kPanelVectors * kLanes) {
    const float* panel = weights + static_cast<int64_t>(k) * inputs;
    switch (outputs - k < kPanelVectors * kLanes ? (outputs - k) / kLanes : kPanelVectors) {
      case 1: winograd_panel<1>(from, panel, tiles, inputs, outputs, to + k); break;
      case 2: winograd_panel<2>(from, panel, tiles, inputs, outputs, to + k); break;
      case 3: winograd_panel<3>(from, panel, tiles, inputs, outputs, to + k); break;
      default: winograd_panel<kPanelVectors>(from, panel, tiles, inputs, outputs, to + k); break;
    }
  }
}

// The 2 x 2 outputs of one tile, all channels, through the epilogue.
static void winograd_output(const WinogradShape& s, const WinogradEpilogue& e, const float* from,
                            int64_t point_stride, int tile, const Picture& addend, const Picture& output) {
  const int y = tile / s.tile_columns() * 2, x = tile % s.tile_columns() * 2;
  const int rows = s.out_height - y < 2 ? 1 : 2, columns = s.out_width - x < 2 ? 1 : 2;
  for (int k = 0; k < s.padded_outputs; k += kLanes) {
    const int left = s.outputs - k, lanes = left < kLanes ? left : kLanes;
    Vec half[2][4];
    for (int c = 0; c < 4; ++c) {
      Vec m[4];
      for (int r = 0; r < 4; ++r) m[r] = load(from + (4 * r + c) * point_stride + k);
      half[0][c] = m[0] + m[1] + m[2];
      half[1][c] = m[1] - m[2] - m[3];
    }
    const Vec threshold = e.threshold ? load(e.threshold + k) : Vec{};
    for (int r = 0; r < rows; ++r) {
      const Vec(&h)[4] = half[r];
      const Vec values[2] = {h[0] + h[1] + h[2], h[1] - h[2] - h[3]};
      for (int c = 0; c < columns; ++c) {
        Vec value = values[c] - threshold;
        if (addend) value += load_partial(addend.data + (y + r) * addend.row + (x + c) * addend.column + k, lanes);
        if (e.relu) value = positive_part(value);
        store_partial(output.data + (y + r) * output.row + (x + c) * output.column + k, value, lanes);
      }
    }
  }
}

static const WinogradKernels kWinogradKernels = {
    kLanes, kTileBlock, kPanelVectors * kLanes, winograd_weights, winograd_input, winograd_multiply, winograd_output};

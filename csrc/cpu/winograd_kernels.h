// Winograd's convolutions: transforms of tiles, and one matrix product per point of the transform, which sums over
// the channels. The matrices are in winograd_tiles.h.
//
// Vectors run along channels, which are adjacent in channels_last memory. Included once per instruction set.

#include "winograd_vector.h"

#if defined(CSC_BFLOAT16)
#include "winograd_bfloat16.h"
#endif

#include "winograd_tiles.h"

// Registers of the products: tiles (or atoms) x vectors of outputs (or channels).
#if defined(CSC_ISA_AVX512)
constexpr int kTileBlock = 6, kPanelVectors = 4, kAtomBlock = 4;
#elif defined(CSC_ISA_AVX2)
constexpr int kTileBlock = 6, kPanelVectors = 2, kAtomBlock = 6;
#else
constexpr int kTileBlock = 4, kPanelVectors = 2, kAtomBlock = 4;
#endif

// Where the weights of input `i`, a multiple of kTogether, for the vector of outputs from `o` on begin, within one
// point, and how far it is to those of the next inputs.
template <typename Stored>
static inline int64_t weight_offset(int inputs, int outputs, int i, int o, int64_t& next) {
  const int whole = kPanelVectors * VectorOf<Stored>::lanes, panel = o / whole * whole;
  const int width = outputs - panel < whole ? outputs - panel : whole;
  next = static_cast<int64_t>(kTogether<Stored>) * width;
  return static_cast<int64_t>(panel) * inputs + static_cast<int64_t>(i) * width + kTogether<Stored> * (o - panel);
}

// G g G' of nine vectors of taps, or of the taps turned around.
template <typename Tile, typename Real, typename V = typename VectorOf<Real>::type>
static inline void transform_taps(const V (&taps)[9], bool turned, V (&points)[Tile::kPoints][Tile::kPoints]) {
  V rows[Tile::kPoints][3];
  for (int c = 0; c < 3; ++c) {
    const int t = turned ? 8 - c : c, step = turned ? -3 : 3;
    const V column[3] = {taps[t], taps[t + step], taps[t + 2 * step]};
    V v[Tile::kPoints];
    Tile::weight(column, v);
    for (int r = 0; r < Tile::kPoints; ++r) rows[r][c] = v[r];
  }
  for (int r = 0; r < Tile::kPoints; ++r) Tile::weight(rows[r], points[r]);
}

// Stores the transforms of kTogether inputs, point by point.
template <typename Stored, int N, int P, typename V>
static inline void store_points(const V (&transformed)[N][P][P], RealOf<Stored> scale, Stored* to, int64_t point) {
  for (int r = 0; r < P; ++r)
    for (int c = 0; c < P; ++c) {
      V weights[N];
      for (int i = 0; i < N; ++i) weights[i] = transformed[i][r][c] * scale;
      store_weights(to + (P * r + c) * point, weights);
    }
}

// The transforms of the atoms [begin, end), a range of whole vectors. The synthesis convolves with the atoms
// turned around.
template <template <typename> class Kind, typename Stored>
static void winograd_weights(const WinogradDictionary<Stored>& d, int begin, int end) {
  typedef RealOf<Stored> Real;
  typedef Kind<Real> Tile;
  typedef typename VectorOf<Stored>::type V;
  constexpr int lanes = VectorOf<Stored>::lanes, points = Tile::kPoints, together = kTogether<Stored>;
  const int atoms = (d.atoms + lanes - 1) / lanes * lanes, channels = (d.channels + lanes - 1) / lanes * lanes;
  const int64_t point = static_cast<int64_t>(atoms) * channels;
  for (int k0 = begin; k0 < end; k0 += lanes) {
    for (int m0 = 0; m0 < channels; m0 += lanes) {
      V block[9][lanes];  // Taps of `lanes` atoms, vectors along the channels.
      for (int k = 0; k < lanes; ++k) {
        Real taps[9][lanes] = {};
        if (k0 + k < d.atoms) {
          const int left = d.channels - m0, count = left < lanes ? left : lanes;
          const Stored* atom = d.dictionary + (static_cast<int64_t>(k0 + k) * d.channels + m0) * 9;
          for (int lane = 0; lane < count; ++lane)
            for (int tap = 0; tap < 9; ++tap) taps[tap][lane] = widened(atom[lane * 9 + tap]);
        }
        for (int tap = 0; tap < 9; ++tap) block[tap][k] = load(taps[tap]);
      }
      int64_t next;
      Stored* to = d.synthesis + weight_offset<Stored>(atoms, channels, k0, m0, next);
      const auto transform = [&](bool turned, Real scale) {
        for (int i = 0; i < lanes; i += together, to += next) {
          V transformed[together][points][points];
          for (int j = 0; j < together; ++j) {
            V vectors[9];
            for (int tap = 0; tap < 9; ++tap) vectors[tap] = block[tap][i + j];
            transform_taps<Tile, Real>(vectors, turned, transformed[j]);
          }
          store_points(transformed, scale, to, point);
        }
      };
      transform(true, Real(-1));
      for (int tap = 0; tap < 9; ++tap) transpose(block[tap]);
      to = d.analysis + weight_offset<Stored>(channels, atoms, m0, k0, next);
      transform(false, d.scale);
    }
  }
}

// M d M' of a tile whose entry (r, c) is entry(r, c): `transform` multiplies a column with M. Point p of the result
// goes to `to + p * point_stride`.
template <int kSide, int kPoints, typename Stored, typename V, typename Entry>
static inline __attribute__((always_inline)) void transform_tile(void (*transform)(const V (&)[kSide], V (&)[kPoints]),
                                                                 const Entry& entry, Stored* to, int64_t point_stride) {
  V rows[kPoints][kSide];
#pragma GCC unroll 8
  for (int c = 0; c < kSide; ++c) {
    V d[kSide], v[kPoints];
#pragma GCC unroll 8
    for (int r = 0; r < kSide; ++r) d[r] = entry(r, c);
    transform(d, v);
#pragma GCC unroll 8
    for (int r = 0; r < kPoints; ++r) rows[r][c] = v[r];
  }
#pragma GCC unroll 8
  for (int r = 0; r < kPoints; ++r) {
    V v[kPoints];
    transform(rows[r], v);
#pragma GCC unroll 8
    for (int c = 0; c < kPoints; ++c) store(to + (kPoints * r + c) * point_stride, v[c]);
  }
}

// The same for every channel of the tile of pixels from (y, x) on, with zeros around the picture.
template <int kSide, int kPoints, typename Stored, typename V = typename VectorOf<Stored>::type>
static inline __attribute__((always_inline)) void transform_pixels(
    void (*transform)(const V (&)[kSide], V (&)[kPoints]), const Picture<Stored>& picture, int height, int width,
    int channels, int y, int x, Stored* to, int64_t point_stride) {
  constexpr int lanes = VectorOf<Stored>::lanes;
  const int64_t row = picture.row, column = picture.column;
  int m = 0;
  if (y >= 0 && x >= 0 && y + kSide <= height && x + kSide <= width) {
    const Stored* first = picture.data + y * row + x * column;
    for (; m + lanes <= channels; m += lanes) {
      const auto pixel = [&](int r, int c)
                             __attribute__((always_inline)) { return load(first + r * row + c * column + m); };
      transform_tile<kSide, kPoints>(transform, pixel, to + m, point_stride);
    }
  }
  for (; m < channels; m += lanes) {
    const int left = channels - m, count = left < lanes ? left : lanes;
    const auto pixel = [&](int r, int c) __attribute__((always_inline)) {
      const bool here = y + r >= 0 && y + r < height && x + c >= 0 && x + c < width;
      return here ? load_partial(picture.data + (y + r) * row + (x + c) * column + m, count) : V{};
    };
    transform_tile<kSide, kPoints>(transform, pixel, to + m, point_stride);
  }
}

// B' d B of one tile.
template <template <typename> class Kind, typename Stored>
static void winograd_input(const WinogradShape& s, const Picture<Stored>& input, int channels, int tile, Stored* to,
                           int64_t point_stride) {
  typedef Kind<RealOf<Stored>> Tile;
  const int y = s.tile_y(tile) - s.top, x = s.tile_x(tile) - s.left;
  transform_pixels<Tile::kPoints, Tile::kPoints>(Tile::input, input, s.height, s.width, channels, y, x, to,
                                                 point_stride);
}

// T E T' of one tile.
template <template <typename> class Kind, typename Real>
static void winograd_gradient(const WinogradShape& s, const Picture<Real>& output, int channels, int tile, Real* to,
                              int64_t point_stride) {
  typedef Kind<Real> Tile;
  const int y = s.tile_y(tile), x = s.tile_x(tile);
  transform_pixels<Tile::kSide, Tile::kPoints>(Tile::gradient, output, s.out_height, s.out_width, channels, y, x, to,
                                               point_stride);
}

// ahead: weights that are multiplied next, as many as these. They come from far where there are many, and are asked for
// line after line between the products.
template <int P, typename Stored>
static void winograd_panel(const Stored* from, const Stored* weights, int tiles, int inputs, const Stored* ahead,
                           RealOf<Stored>* to) {
  typedef typename VectorOf<Stored>::type V;
  constexpr int lanes = VectorOf<Stored>::lanes, together = kTogether<Stored>, row = P * lanes * together;
  constexpr int line = 64 / sizeof(Stored), step = row < line ? row : line;
  const int64_t asked_in_pass = static_cast<int64_t>(inputs / together) * step;
  const Stored* const last_pass = ahead + static_cast<int64_t>(inputs / together) * row - asked_in_pass;
  for (int t = 0; t < tiles; t += kTileBlock) {
    const Stored* rows = from + static_cast<int64_t>(t) * inputs;
    V sums[kTileBlock][P];
#pragma GCC unroll 8
    for (int i = 0; i < kTileBlock; ++i)
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) sums[i][p] = V{};
    const Stored *u = weights, *asked = ahead;
    for (int m = 0; m < inputs; m += together, u += row, asked += step) {
      __builtin_prefetch(asked, 0, 2);
      V w[P];
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) w[p] = load_weights(u + p * lanes * together);
#pragma GCC unroll 8
      for (int i = 0; i < kTileBlock; ++i) {
        const V v = splat_inputs(rows + i * static_cast<int64_t>(inputs) + m);
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) multiply_add<Stored>(sums[i][p], v, w[p]);
      }
    }
    if (ahead < last_pass) ahead += asked_in_pass;
#pragma GCC unroll 8
    for (int i = 0; i < kTileBlock; ++i)
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) store(to + (t + i) * kWinogradChannels + p * lanes, sums[i][p]);
  }
}

template <typename Stored>
static void winograd_multiply(const Stored* from, const Stored* weights, int tiles, int inputs, int outputs,
                              const Stored* ahead, RealOf<Stored>* to) {
  constexpr int lanes = VectorOf<Stored>::lanes, most = kPanelVectors * lanes;
  for (int k = 0; k < outputs; k += most) {
    const Stored* panel = weights + static_cast<int64_t>(k) * inputs;
    const Stored* next = k + most < outputs ? panel + static_cast<int64_t>(most) * inputs : ahead;
    switch (outputs - k < most ? (outputs - k) / lanes : kPanelVectors) {
      case 1:
        winograd_panel<1>(from, panel, tiles, inputs, next, to + k);
        break;
      case 2:
        winograd_panel<2>(from, panel, tiles, inputs, next, to + k);
        break;
      case 3:
        winograd_panel<3>(from, panel, tiles, inputs, next, to + k);
        break;
      default:
        winograd_panel<kPanelVectors>(from, panel, tiles, inputs, next, to + k);
        break;
    }
  }
}

// The outputs of one tile through the epilogue.
template <template <typename> class Kind, typename Stored>
static void winograd_output(const WinogradShape& s, const WinogradEpilogue<Stored>& e, int channels,
                            const RealOf<Stored>* from, int64_t point_stride, int tile, const Picture<Stored>& output) {
  typedef Kind<RealOf<Stored>> Tile;
  typedef typename VectorOf<Stored>::type V;
  constexpr int lanes = VectorOf<Stored>::lanes, points = Tile::kPoints, side = Tile::kSide;
  const int y = s.tile_y(tile), x = s.tile_x(tile);
  const int rows = s.out_height - y < side ? s.out_height - y : side;
  const int columns = s.out_width - x < side ? s.out_width - x : side;
  const bool whole = rows == side && columns == side;
  Stored* first = output.data + y * output.row + x * output.column;
  const Stored* addend = e.addend ? e.addend.data + y * e.addend.row + x * e.addend.column : nullptr;
  for (int k = 0; k < channels; k += lanes) {
    const int left = channels - k, count = left < lanes ? left : lanes;
    V part[side][points];
#pragma GCC unroll 8
    for (int c = 0; c < points; ++c) {
      V m[points], v[side];
#pragma GCC unroll 8
      for (int r = 0; r < points; ++r) m[r] = load(from + (points * r + c) * point_stride + k);
      Tile::output(m, v);
#pragma GCC unroll 8
      for (int r = 0; r < side; ++r) part[r][c] = v[r];
    }
    const V threshold = e.threshold ? load(e.threshold + k) : V{};
#pragma GCC unroll 8
    for (int r = 0; r < side; ++r) {
      V values[side];
      Tile::output(part[r], values);
#pragma GCC unroll 8
      for (int c = 0; c < side; ++c) {
        const int64_t at = r * output.row + c * output.column + k;
        const int64_t addend_at = r * e.addend.row + c * e.addend.column + k;
        V value = values[c] - threshold;
        if (whole && count == lanes) {
          if (addend) value += load(addend + addend_at);
          if (e.relu) value = positive_part(value);
          if (e.stream)
            stream(first + at, value);
          else
            store(first + at, value);
        } else if (r < rows && c < columns) {
          if (addend) value += load_partial(addend + addend_at, count);
          if (e.relu) value = positive_part(value);
          store_partial(first + at, value, count);
        }
      }
    }
  }
}

template <int A, int P, typename Real>
static void winograd_outer_block(const Real* codes, const Real* images, int tiles, Real* sums) {
  typedef typename VectorOf<Real>::type V;
  constexpr int lanes = VectorOf<Real>::lanes, row = kWinogradChannels;
  V block[A][P];
#pragma GCC unroll 8
  for (int i = 0; i < A; ++i)
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) block[i][p] = load(sums + i * row + p * lanes);
  for (int t = 0; t < tiles; ++t) {
    V v[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) v[p] = load(images + t * row + p * lanes);
#pragma GCC unroll 8
    for (int i = 0; i < A; ++i) {
      const V u = splat(codes[t * row + i]);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) block[i][p] += u * v[p];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < A; ++i)
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) store(sums + i * row + p * lanes, block[i][p]);
}

template <int P, typename Real>
static void winograd_outer(const Real* codes, const Real* images, int tiles, int atoms, Real* sums) {
  constexpr int row = kWinogradChannels;
  int k = 0;
  for (; k + kAtomBlock <= atoms; k += kAtomBlock)
    winograd_outer_block<kAtomBlock, P>(codes + k, images, tiles, sums + k * row);
  // Rows of tiles and sums are a multiple of 4.
  for (; k < atoms; k += 4) winograd_outer_block<4, P>(codes + k, images, tiles, sums + k * row);
}

// sums [atoms][kWinogradChannels] += codes' [tiles][kWinogradChannels] x images, of one point.
template <typename Real>
static void winograd_accumulate(const Real* codes, const Real* images, int tiles, int atoms, int channels, Real* sums) {
  constexpr int lanes = VectorOf<Real>::lanes;
  for (int m = 0; m < channels; m += kPanelVectors * lanes) {
    const int left = (channels - m + lanes - 1) / lanes;
    switch (left < kPanelVectors ? left : kPanelVectors) {
      case 1:
        winograd_outer<1>(codes, images + m, tiles, atoms, sums + m);
        break;
      case 2:
        winograd_outer<2>(codes, images + m, tiles, atoms, sums + m);
        break;
      case 3:
        winograd_outer<3>(codes, images + m, tiles, atoms, sums + m);
        break;
      default:
        winograd_outer<kPanelVectors>(codes, images + m, tiles, atoms, sums + m);
        break;
    }
  }
}

// G' S G of one block of sums, added to the gradient.
template <template <typename> class Kind, typename Real>
static void winograd_add_gradient(const WinogradGradient<Real>& g) {
  typedef Kind<Real> Tile;
  typedef typename VectorOf<Real>::type V;
  constexpr int lanes = VectorOf<Real>::lanes, points = Tile::kPoints, row = kWinogradChannels;
  for (int k = g.first_atom; k < g.last_atom; ++k) {
    for (int m = g.first_channel; m < g.last_channel; m += lanes) {
      const Real* sums = g.sums + (k - g.first_atom) * row + (m - g.first_channel);
      V part[3][points];
      for (int c = 0; c < points; ++c) {
        V u[points], v[3];
        for (int r = 0; r < points; ++r) u[r] = load(sums + (points * r + c) * row * row);
        Tile::weight_gradient(u, v);
        for (int r = 0; r < 3; ++r) part[r][c] = v[r];
      }
      Real taps[9][lanes];
      for (int r = 0; r < 3; ++r) {
        V v[3];
        Tile::weight_gradient(part[r], v);
        for (int c = 0; c < 3; ++c) store(taps[3 * r + c], v[c] * g.scale);
      }
      const int left = g.last_channel - m, count = left < lanes ? left : lanes;
      Real* to = g.gradient + (static_cast<int64_t>(k) * g.channels + m) * 9;
      for (int lane = 0; lane < count; ++lane)
        for (int tap = 0; tap < 9; ++tap) to[lane * 9 + tap] += taps[tap][lane];
    }
  }
}

// All but those of the dictionary's gradient.
template <template <typename> class Kind, typename Stored>
static constexpr WinogradKernels<Stored> winograd_convolution() {
  typedef Kind<RealOf<Stored>> Tile;
  return {VectorOf<Stored>::lanes,
          Tile::kSide,
          Tile::kPoints * Tile::kPoints,
          kTileBlock,
          winograd_weights<Kind, Stored>,
          winograd_input<Kind, Stored>,
          winograd_multiply<Stored>,
          winograd_output<Kind, Stored>,
          nullptr,
          nullptr,
          nullptr};
}

template <template <typename> class Kind, typename Real>
static constexpr WinogradKernels<Real> winograd_kernels() {
  WinogradKernels<Real> kernels = winograd_convolution<Kind, Real>();
  kernels.transform_gradient = winograd_gradient<Kind, Real>;
  kernels.accumulate = winograd_accumulate<Real>;
  kernels.add_gradient = winograd_add_gradient<Kind, Real>;
  return kernels;
}

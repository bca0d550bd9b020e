// What the Winograd kernels are given; see winograd_kernels.h.

#pragma once

#include <cstdint>

namespace csc {

// What the upper half of a float holds: rounded for products, which are summed in float32.
struct Bfloat16 {
  uint16_t bits;
};

// What numbers in memory are computed in.
template <typename Stored>
struct Computed {
  typedef Stored type;
};
template <>
struct Computed<Bfloat16> {
  typedef float type;
};
template <typename Stored>
using RealOf = typename Computed<Stored>::type;

// Channels that are worked on at a time: of the outputs of a convolution, and of both sides of a gradient.
constexpr int kWinogradChannels = 64;

// A stride-1 3x3 convolution of channels_last images: output = epilogue(sum).
struct WinogradShape {
  int inputs, outputs;                // Channels, as they are in memory.
  int padded_inputs, padded_outputs;  // Rounded up to whole vectors.
  int height, width;                  // Of the input.
  int out_height, out_width;
  int top, left;  // Zeros before the first row and column of the input.
  int side;       // Rows and columns of outputs that a tile has.
  int tiles, tile_columns;

  // The first output of a tile.
  int tile_y(int tile) const { return tile / tile_columns * side; }
  int tile_x(int tile) const { return tile % tile_columns * side; }
};

// One sample, channels adjacent.
template <typename Stored>
struct Picture {
  Stored* data = nullptr;
  int64_t row = 0, column = 0;
  explicit operator bool() const { return data != nullptr; }
};

// output = max(addend + sum - threshold, 0), each part where it is given. `stream`: written around the caches, which
// takes pixels aligned to vectors.
template <typename Stored>
struct WinogradEpilogue {
  const RealOf<Stored>* threshold = nullptr;  // [padded_outputs]
  bool relu = false, stream = false;
  Picture<Stored> addend;
};

// A dictionary (K, M, 3, 3), contiguous, and where its transforms go, [points][panel][inputs][panel width] each
// with channels rounded up to whole vectors: the analysis' times `scale`, and that of minus the synthesis. Of bfloat16,
// whose products are summed two by two, two inputs lie side by side: [inputs / 2][panel width][2].
template <typename Stored>
struct WinogradDictionary {
  const Stored* dictionary;
  int atoms, channels;
  RealOf<Stored> scale;
  Stored* analysis;
  Stored* synthesis;
};

// Sums of one block of atoms and channels, [points][kWinogradChannels atoms][kWinogradChannels channels], and the
// gradient (K, M, 3, 3), contiguous, that they are added to.
template <typename Real>
struct WinogradGradient {
  const Real* sums;
  Real* gradient;
  int atoms, channels;        // Of the gradient.
  int first_atom, last_atom;  // Of this block.
  int first_channel, last_channel;
  Real scale;
};

// One size of tile in one precision.
template <typename Stored>
struct WinogradKernels {
  typedef RealOf<Stored> Real;

  int lanes;
  int side;        // Rows and columns of outputs of a tile: 2 or 4.
  int points;      // Of its transform, 16 or 36.
  int tile_block;  // Tiles of one register block; blocks of tiles are padded to it.
  void (*weights)(const WinogradDictionary<Stored>&, int begin, int end);
  // A tile of the input: point p at to + p * point_stride.
  void (*transform_input)(const WinogradShape&, const Picture<Stored>&, int channels, int tile, Stored* to,
                          int64_t point_stride);
  // to [tiles][kWinogradChannels] = from [tiles][inputs] x weights, of one point and up to kWinogradChannels outputs;
  // ahead: the weights of the next product.
  void (*multiply)(const Stored* from, const Stored* weights, int tiles, int inputs, int outputs, const Stored* ahead,
                   Real* to);
  void (*transform_output)(const WinogradShape&, const WinogradEpilogue<Stored>&, int channels, const Real* from,
                           int64_t point_stride, int tile, const Picture<Stored>& output);
  // The transposes of the last three transforms: of a tile of what the outputs' gradient is, of the product, of the
  // weights. Not of bfloat16.
  void (*transform_gradient)(const WinogradShape&, const Picture<Stored>&, int channels, int tile, Stored* to,
                             int64_t point_stride);
  void (*accumulate)(const Stored* codes, const Stored* images, int tiles, int atoms, int channels, Real* sums);
  void (*add_gradient)(const WinogradGradient<Real>&);
};

struct Winograd {
  WinogradKernels<float> single_2, single_4;
  WinogradKernels<double> double_2, double_4;
};

}  // namespace csc

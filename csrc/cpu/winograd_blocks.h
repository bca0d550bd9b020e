// What the Winograd kernels are given; see winograd_kernels.h.

#pragma once

#include <cstdint>

namespace csc {

constexpr int kWinogradPoints = 16;  // Of a 4 x 4 tile of F(2x2, 3x3).

// A stride-1 3x3 convolution of channels_last images: output = epilogue(sum).
struct WinogradShape {
  int inputs, outputs;  // Channels, as they are in memory.
  int padded_inputs, padded_outputs;  // Rounded up to whole vectors.
  int height, width;                  // Of the input.
  int out_height, out_width;
  int top, left;  // Zeros before the first row and column of the input.

  int tile_rows() const { return (out_height + 1) / 2; }
  int tile_columns() const { return (out_width + 1) / 2; }
  int tiles() const { return tile_rows() * tile_columns(); }
};

// One sample, channels adjacent.
struct Picture {
  float* data = nullptr;
  int64_t row = 0, column = 0;
  explicit operator bool() const { return data != nullptr; }
};

// output = max(addend + sum - threshold, 0), each part where it is given.
struct WinogradEpilogue {
  const float* threshold = nullptr;  // [padded_outputs]
  bool relu = false;
};

// A dictionary (K, M, 3, 3), contiguous, and where its transforms go, [16][panel][inputs][panel width] each with
// channels rounded up to whole vectors: the analysis' times `scale`, and that of minus the synthesis.
struct WinogradDictionary {
  const float* dictionary;
  int atoms, channels;
  float scale;
  float* analysis;
  float* synthesis;
};

struct WinogradKernels {
  int lanes;
  int tile_block;  // Tiles of one register block; blocks of tiles are padded to it.
  int panel;       // Output channels of one panel of weights.
  void (*weights)(const WinogradDictionary&, int begin, int end);
  void (*transform_input)(const WinogradShape&, const Picture&, int tile, float* to, int64_t point_stride);
  void (*multiply)(const float* from, const float* weights, int tiles, int inputs, int outputs, float* to);
  void (*transform_output)(const WinogradShape&, const WinogradEpilogue&, const float* from, int64_t point_stride,
                           int tile, const Picture& addend, const Picture& output);
};

}  // namespace csc

// What the launchers take: plain structs of pointers and numbers, for the host and the device alike.

#pragma once

#include <cstdint>

namespace csc::cuda {

enum class Element { float32, float16, bfloat16 };

constexpr int size_of(Element element) { return element == Element::float32 ? 4 : 2; }

// How products are computed. float32 is exact in `fma`; `tf32` rounds its factors to 10 bits.
enum class Product { fma, tf32, float16, bfloat16 };

struct Shape {
  int batch, channels, height, width;  // x: (N, M, H, W)
  int atoms, code_height, code_width;  // z: (N, K, H', W')
  int kernel_height, kernel_width;
  int stride_height, stride_width;
  int top, left;
};

// A 4-d tensor; strides in elements. Without data, an argument that was not given.
struct View {
  void* data = nullptr;
  int64_t batch = 0, channel = 0, row = 0, column = 0;
};

// A number that may live on the device and may vary over the code: strides 0 where it does not.
struct Parameter {
  const float* data = nullptr;  // None: `value`.
  float value = 0;
  int64_t batch = 0, channel = 0, row = 0, column = 0;
};

// result = mask * (x - A z), or mask * scale * A z without x.
struct SynthesisArguments {
  Shape shape;
  View code, dictionary, image, mask, result;
  float scale = 1;
};

// code = prox(base + scale A' image); point = code + beta (code - previous). Without `shrinks` no prox.
struct AnalysisArguments {
  Shape shape;
  View image, dictionary, base, previous, code, point;
  Parameter scale, lmbda, mu;
  bool shrinks = false, nonneg = true;
  float beta = 0;
};

// result (K, M, kH, kW), contiguous: the gradient of <A' image, code> with respect to the dictionary.
// partials: [splits][K][M kH kW], one sum for every range of positions.
struct CorrelationArguments {
  Shape shape;
  View image, code;
  float* partials = nullptr;
  float* result = nullptr;
  int splits = 1;
};

// results[group][i] = sum over p of partials[group][p][i].
struct SumsArguments {
  const float* partials;
  float* results;
  int64_t groups, count, length;
};

constexpr int kMostIterations = 64;

// What a solve on chip and its backward have in common.
struct SolveArguments {
  Shape shape;
  View x, dictionary, start, mask, z;  // start: z0.
  Parameter step_size, lmbda, mu;
  int tile_rows = 0, tile_columns = 0;
  int blocks = 0;
  int n_iter = 0;
  bool nonneg = true, gradient_at_code = false;
  float weights[kMostIterations] = {};  // Momentum after each step.
  bool copies_lines = false;            // Whether x's rows are whole, aligned lines of 16 bytes.
};

// partials: [blocks][K][M kH kW]. penalty_partials: [tiles][2][K], sums of sign(z) G and z G.
struct SolveBackwardArguments {
  SolveArguments solve;
  View grad, grad_x, grad_start;
  float* partials = nullptr;
  float* penalty_partials = nullptr;
};

}  // namespace csc::cuda

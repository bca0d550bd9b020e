// Elements, parameters and the proximal map.

#pragma once

#include "arguments.h"
#include "memory.cuh"

namespace csc::cuda {

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename Element>
__device__ Element from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
  return value;
}
template <>
__device__ inline __half from_float<__half>(float value) {
  return __float2half(value);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16(value);
}

// run(zero) with a zero of the element's type.
template <typename Run>
void with_element(Element element, const Run& run) {
  switch (element) {
    case Element::float32:
      return run(float{});
    case Element::float16:
      return run(__half{});
    case Element::bfloat16:
      return run(__nv_bfloat16{});
  }
}

__device__ inline int64_t offset(const View& v, int64_t n, int64_t c, int64_t h, int64_t w) {
  return n * v.batch + c * v.channel + h * v.row + w * v.column;
}

template <typename Element>
__device__ inline float load(const View& v, int64_t n, int64_t c, int64_t h, int64_t w) {
  return to_float(load_global(static_cast<const Element*>(v.data) + offset(v, n, c, h, w)));
}

template <typename Element>
__device__ inline void store(const View& v, int64_t n, int64_t c, int64_t h, int64_t w, float value) {
  store_global(static_cast<Element*>(v.data) + offset(v, n, c, h, w), from_float<Element>(value));
}

__device__ inline float load(const Parameter& p, int64_t n, int64_t k, int64_t i, int64_t j) {
  return p.data ? load_global(p.data + n * p.batch + k * p.channel + i * p.row + j * p.column) : p.value;
}

// A position (n, i, j) of a plane of rows x columns, from its number.
struct Position {
  int64_t n;
  int row, column;
};

__device__ inline Position position_of(int64_t index, int rows, int columns) {
  const int64_t line = index / columns;
  return {line / rows, static_cast<int>(line % rows), static_cast<int>(index % columns)};
}

// NaN stays NaN, as in torch's relu.
__device__ inline float positive_part(float v) { return v < 0 ? 0.0f : v; }

// Where mu is the number 0 there is nothing to divide by.
__device__ inline bool divides(const Parameter& mu) { return mu.data != nullptr || mu.value != 0; }

// shrink(v, t lmbda) / (1 + t mu).
__device__ inline float prox(float v, float t, const Parameter& lmbda, const Parameter& mu, bool nonneg, int64_t n,
                             int k, int i, int j) {
  const float threshold = t * load(lmbda, n, k, i, j);
  float z = positive_part(v - threshold);
  if (!nonneg) z -= positive_part(-v - threshold);
  return divides(mu) ? z / (1 + t * load(mu, n, k, i, j)) : z;
}

// floor(a / b) for b > 0.
__host__ __device__ inline int floor_div(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

}  // namespace csc::cuda

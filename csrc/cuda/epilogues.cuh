// What follows a convolution, at one entry of its result: in the epilogue of residual.cu and fista_step.cu, and in
// tails.cu after a library's.

#pragma once

#include "numbers.cuh"

namespace csc::cuda {

// mask * (x - A z), or mask * scale * A z without x; `sum` is A z.
template <typename Element>
__device__ void finish_pixel(const SynthesisArguments& a, const Position& p, int m, float sum) {
  float value = a.image.data ? load<Element>(a.image, p.n, m, p.row, p.column) - sum : a.scale * sum;
  if (a.mask.data) value *= load<Element>(a.mask, p.n, m, p.row, p.column);
  store<Element>(a.result, p.n, m, p.row, p.column, value);
}

// The code, and the point extrapolated from it; `sum` is A' r, and t the step size.
template <typename Element>
__device__ void finish_code(const AnalysisArguments& a, float t, const Position& p, int k, float sum) {
  float value = t * sum;
  if (a.base.data) value += load<Element>(a.base, p.n, k, p.row, p.column);
  if (a.shrinks) value = prox(value, t, a.lmbda, a.mu, a.nonneg, p.n, k, p.row, p.column);
  store<Element>(a.code, p.n, k, p.row, p.column, value);
  if (!a.point.data) return;
  const float previous = load<Element>(a.previous, p.n, k, p.row, p.column);
  store<Element>(a.point, p.n, k, p.row, p.column, value + a.beta * (value - previous));
}

}  // namespace csc::cuda

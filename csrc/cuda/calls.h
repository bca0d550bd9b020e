// From tensors to the launchers' arguments. `Tensor` is torch::stable::Tensor, or a test's: it has size, stride, dim,
// data_ptr, is_cpu and element() -> Element.

#pragma once

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "launch.h"
#include "stem_layout.h"

namespace csc::cuda {

using Ints = std::vector<int64_t>;

inline Product product_of(Element element, bool tf32) {
  switch (element) {
    case Element::float32:
      return tf32 ? Product::tf32 : Product::fma;
    case Element::float16:
      return Product::float16;
    case Element::bfloat16:
      return Product::bfloat16;
  }
  throw std::runtime_error("the CUDA kernels take float32, float16 and bfloat16");
}

template <typename Tensor>
View view(const Tensor& t) {
  // A dimension of size 1 serves every index, as an expanded one does.
  const auto stride = [&](int d) { return t.size(d) == 1 ? int64_t{0} : int64_t{t.stride(d)}; };
  return {t.data_ptr(), stride(0), stride(1), stride(2), stride(3)};
}

// Kernels read all tensors as one type of element.
template <typename Tensor>
void same_element(const Tensor& t, const std::optional<Tensor>& other) {
  if (other && other->element() != t.element()) throw std::runtime_error("tensors of several dtypes in one kernel");
}

template <typename Tensor>
View view(const std::optional<Tensor>& t) {
  return t ? view(*t) : View{};
}

// lmbda, mu and step sizes: a float32 number in host memory, or float32 on the device, of four dimensions or none.
template <typename Tensor>
Parameter parameter(const Tensor& t) {
  Parameter p;
  const auto* data = static_cast<const float*>(t.data_ptr());
  if (t.is_cpu()) {
    p.value = *data;
    return p;
  }
  p.data = data;
  if (t.dim() == 4) {
    const View v = view(t);
    p.batch = v.batch, p.channel = v.channel, p.row = v.row, p.column = v.column;
  }
  return p;
}

template <typename Tensor>
Parameter parameter(const std::optional<Tensor>& t) {
  return t ? parameter(*t) : Parameter{};
}

// Of an image and a code.
template <typename Tensor>
Shape shape_of(const Tensor& image, const Tensor& code, const Tensor& dictionary, const Ints& stride,
               const Ints& pads) {
  const auto size = [](const Tensor& t, int d) {
    if (t.size(d) > INT32_MAX) throw std::runtime_error("a dimension is too large");
    return static_cast<int>(t.size(d));
  };
  Shape s;
  s.batch = size(image, 0), s.channels = size(image, 1), s.height = size(image, 2), s.width = size(image, 3);
  s.atoms = size(code, 1), s.code_height = size(code, 2), s.code_width = size(code, 3);
  s.kernel_height = size(dictionary, 2), s.kernel_width = size(dictionary, 3);
  s.stride_height = static_cast<int>(stride[0]), s.stride_width = static_cast<int>(stride[1]);
  s.top = static_cast<int>(pads[0]), s.left = static_cast<int>(pads[2]);
  return s;
}

// What csc_cuda::direct_plan returned.
inline DirectPlan direct_plan(const Ints& plan) {
  const auto number = [&](int i) { return static_cast<int>(plan.at(i)); };
  return {number(0), number(1), number(2), plan.at(3) != 0, plan.at(4) != 0};
}

template <typename Tensor>
void synthesis(const Tensor& z, const Tensor& dictionary, const Ints& stride, const Ints& pads, double scale,
               const std::optional<Tensor>& x, const std::optional<Tensor>& mask, bool tf32, const Ints& plan,
               const Tensor& result, void* stream) {
  SynthesisArguments a;
  a.shape = shape_of(result, z, dictionary, stride, pads);
  a.code = view(z), a.dictionary = view(dictionary), a.image = view(x), a.mask = view(mask), a.result = view(result);
  a.scale = static_cast<float>(scale);
  if (a.shape.batch) launch_synthesis(a, direct_plan(plan), product_of(z.element(), tf32), stream);
}

template <typename Tensor>
void analysis(const Tensor& image, const Tensor& dictionary, const Ints& stride, const Ints& pads, const Tensor& scale,
              const std::optional<Tensor>& base, const std::optional<Tensor>& lmbda, const std::optional<Tensor>& mu,
              bool nonneg, const std::optional<Tensor>& previous, double beta, bool tf32, const Ints& plan,
              const Tensor& code, const std::optional<Tensor>& point, void* stream) {
  AnalysisArguments a;
  a.shape = shape_of(image, code, dictionary, stride, pads);
  a.image = view(image), a.dictionary = view(dictionary), a.base = view(base), a.previous = view(previous);
  a.code = view(code), a.point = view(point);
  a.scale = parameter(scale), a.lmbda = parameter(lmbda), a.mu = parameter(mu);
  a.shrinks = lmbda.has_value(), a.nonneg = nonneg;
  a.beta = static_cast<float>(beta);
  if (a.shape.batch) launch_analysis(a, direct_plan(plan), product_of(image.element(), tf32), stream);
}

// result: A z, which mask * (x - A z), or mask * scale * A z, takes the place of.
template <typename Tensor>
void residual_tail(double scale, const std::optional<Tensor>& x, const std::optional<Tensor>& mask,
                   const Tensor& result, void* stream) {
  for (const auto& other : {x, mask}) same_element(result, other);
  SynthesisArguments a;
  a.shape = shape_of(result, result, result, {1, 1}, {0, 0, 0, 0});
  a.image = view(x), a.mask = view(mask), a.result = view(result);
  a.scale = static_cast<float>(scale);
  if (a.shape.batch) launch_residual_tail(a, result.element(), stream);
}

// code: A' image, which prox(base + scale A' image) takes the place of.
template <typename Tensor>
void step_tail(const Tensor& scale, const std::optional<Tensor>& base, const std::optional<Tensor>& lmbda,
               const std::optional<Tensor>& mu, bool nonneg, const std::optional<Tensor>& previous, double beta,
               const Tensor& code, const std::optional<Tensor>& point, void* stream) {
  for (const auto& other : {base, previous, point}) same_element(code, other);
  AnalysisArguments a;
  a.shape = shape_of(code, code, code, {1, 1}, {0, 0, 0, 0});
  a.base = view(base), a.previous = view(previous), a.code = view(code), a.point = view(point);
  a.scale = parameter(scale), a.lmbda = parameter(lmbda), a.mu = parameter(mu);
  a.shrinks = lmbda.has_value(), a.nonneg = nonneg;
  a.beta = static_cast<float>(beta);
  if (a.shape.batch) launch_step_tail(a, code.element(), stream);
}

// partials: (splits, K, M, kH, kW).
template <typename Tensor>
void correlation(const Tensor& image, const Tensor& code, const Ints& stride, const Ints& pads, bool tf32,
                 const Tensor& partials, const Tensor& result, void* stream) {
  CorrelationArguments a;
  a.shape = shape_of(image, code, result, stride, pads);
  a.image = view(image), a.code = view(code);
  a.partials = static_cast<float*>(partials.data_ptr()), a.result = static_cast<float*>(result.data_ptr());
  a.splits = static_cast<int>(partials.size(0));
  launch_correlation(a, product_of(image.element(), tf32), stream);
}

template <typename Tensor>
SolveArguments solve_arguments(const Tensor& x, const Tensor& dictionary, const Tensor& lmbda, const Tensor& mu,
                               const Tensor& step_size, const std::optional<Tensor>& z0,
                               const std::optional<Tensor>& mask, const Ints& stride, const Ints& pads, bool nonneg,
                               bool gradient_at_code, const std::vector<double>& weights, const Ints& plan,
                               const Tensor& z) {
  SolveArguments a;
  a.shape = shape_of(x, z, dictionary, stride, pads);
  a.x = view(x), a.dictionary = view(dictionary), a.start = view(z0), a.mask = view(mask), a.z = view(z);
  a.step_size = parameter(step_size), a.lmbda = parameter(lmbda), a.mu = parameter(mu);
  a.tile_rows = static_cast<int>(plan[0]), a.tile_columns = static_cast<int>(plan[1]);
  a.blocks = static_cast<int>(plan[2]);
  a.nonneg = nonneg, a.gradient_at_code = gradient_at_code;
  if (weights.size() > kMostIterations) throw std::runtime_error("too many iterations for one launch");
  a.n_iter = static_cast<int>(weights.size());
  for (size_t k = 0; k < weights.size(); ++k) a.weights[k] = static_cast<float>(weights[k]);
  const int64_t line = 16 / size_of(x.element());
  a.copies_lines = reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0 && x.size(3) % line == 0 &&
                   (a.x.column == 1 || x.size(3) == 1) && a.x.row % line == 0 && a.x.channel % line == 0 &&
                   a.x.batch % line == 0;
  return a;
}

template <typename Tensor>
void fista(const Tensor& x, const Tensor& dictionary, const Tensor& lmbda, const Tensor& mu, const Tensor& step_size,
           const std::optional<Tensor>& z0, const std::optional<Tensor>& mask, const Ints& stride, const Ints& pads,
           bool nonneg, bool gradient_at_code, const std::vector<double>& weights, bool tf32, const Ints& plan,
           const Tensor& z, void* stream) {
  const SolveArguments a = solve_arguments(x, dictionary, lmbda, mu, step_size, z0, mask, stride, pads, nonneg,
                                           gradient_at_code, weights, plan, z);
  if (a.shape.batch) launch_fista(a, product_of(x.element(), tf32), stream);
}

// grad_dictionary: float32, without its factor t. penalty: (N, 2, K), sums of sign(z) G and z G.
template <typename Tensor>
void fista_backward(const Tensor& grad, const Tensor& x, const Tensor& dictionary, const Tensor& lmbda,
                    const Tensor& mu, const Tensor& step_size, const std::optional<Tensor>& z0,
                    const std::optional<Tensor>& mask, const Ints& stride, const Ints& pads, bool nonneg,
                    const std::vector<double>& weights, bool tf32, const Ints& plan, const Tensor& z,
                    const std::optional<Tensor>& grad_x, const std::optional<Tensor>& grad_z0,
                    const std::optional<Tensor>& penalty_partials, const std::optional<Tensor>& penalty,
                    const std::optional<Tensor>& partials, const std::optional<Tensor>& grad_dictionary, void* stream) {
  SolveBackwardArguments a;
  a.solve =
      solve_arguments(x, dictionary, lmbda, mu, step_size, z0, mask, stride, pads, nonneg, false, weights, plan, z);
  a.grad = view(grad), a.grad_x = view(grad_x), a.grad_start = view(grad_z0);
  a.partials = partials ? static_cast<float*>(partials->data_ptr()) : nullptr;
  a.penalty_partials = penalty_partials ? static_cast<float*>(penalty_partials->data_ptr()) : nullptr;
  if (a.solve.shape.batch) launch_fista_backward(a, product_of(x.element(), tf32), stream);
  const Shape& s = a.solve.shape;
  const int64_t taps = static_cast<int64_t>(s.channels) * s.kernel_height * s.kernel_width;
  if (partials)
    launch_sums(
        {a.partials, static_cast<float*>(grad_dictionary->data_ptr()), 1, s.batch ? a.solve.blocks : 0, s.atoms * taps},
        stream);
  if (penalty)
    launch_sums({a.penalty_partials, static_cast<float*>(penalty->data_ptr()), s.batch,
                 tiles_of(s, a.solve.tile_rows, a.solve.tile_columns), 2 * s.atoms},
                stream);
}

}  // namespace csc::cuda

// The schemas of the compiled kernels. The ops csc::* that users call are defined in Python and choose
// among backends; these are what the backend "native" calls. They allocate no tensors: the last
// arguments are written.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(csc_native, m) {
  m.def(
      "fista(Tensor x, Tensor dictionary, Tensor threshold, Tensor? divisor, float step_size, Tensor? z0, "
      "Tensor? mask, int[] stride, int[] pads, bool pairs, bool nonneg, bool gradient_at_code, float[] weights, "
      "Tensor(a!) z) -> ()");
  m.def(
      "fista_backward(Tensor gradient, Tensor x, Tensor dictionary, Tensor threshold, Tensor? divisor, "
      "float step_size, Tensor? z0, Tensor? mask, int[] stride, int[] pads, bool pairs, bool nonneg, "
      "bool gradient_at_code, float[] weights, Tensor z, Tensor(a!)? grad_x, Tensor(b!)? grad_z0, Tensor(c!)? penalty, "
      "Tensor(d!)? grad_dictionary) -> ()");
  m.def(
      "synthesis(Tensor z, Tensor dictionary, int[] stride, int[] pads, bool pairs, Tensor? x, Tensor? mask, "
      "Tensor(a!) result) -> ()");
  m.def(
      "analysis(Tensor image, Tensor dictionary, int[] stride, int[] pads, bool pairs, float scale, Tensor? base, "
      "Tensor? threshold, Tensor? divisor, bool nonneg, Tensor? previous, float beta, Tensor(a!) code, "
      "Tensor(b!)? point) -> ()");
  m.def(
      "correlation(Tensor image, Tensor code, Tensor dictionary, int[] stride, int[] pads, bool pairs, "
      "Tensor(a!) result) -> ()");
  m.def(
      "winograd(Tensor input, Tensor weights, int side, int top, int left, Tensor? threshold, Tensor? addend, "
      "bool relu, Tensor(b!)? seconds, Tensor(a!) output) -> ()");
  m.def(
      "winograd_weights(Tensor dictionary, int side, float scale, Tensor(a!) analysis, Tensor(b!) synthesis) "
      "-> ()");
  m.def(
      "winograd_gradient(Tensor[] images, Tensor[] codes, int side, int top, int left, float scale, "
      "Tensor(b!)? seconds, Tensor(a!) gradient) -> ()");
  m.def("lipschitz_bound(Tensor dictionary, int[] stride, int per_tap, float rounding, float tiny) -> float");
  m.def("winograd_lanes() -> int");
  m.def("winograd_bfloat16() -> bool");
  m.def("isa() -> str");
  m.def("runnable_isas() -> str");
  m.def("choose_isa(str name) -> ()");
  m.def("compiler() -> str");
}

// The CUDA kernels, which the backends "cuda" and "cudnn" call. plan, direct_plan, product_bytes and built need no GPU;
// the others exist where they were compiled. Numbers (lmbda, mu, scale, step_size) are float32 scalars in host memory,
// or tensors on the device.
STABLE_TORCH_LIBRARY(csc_cuda, m) {
  m.def(
      "synthesis(Tensor z, Tensor dictionary, int[] stride, int[] pads, float scale, Tensor? x, Tensor? mask, "
      "bool tf32, int[] plan, Tensor(a!) result) -> ()");
  m.def(
      "analysis(Tensor image, Tensor dictionary, int[] stride, int[] pads, Tensor scale, Tensor? base, "
      "Tensor? lmbda, Tensor? mu, bool nonneg, Tensor? previous, float beta, bool tf32, int[] plan, "
      "Tensor(a!) code, Tensor(b!)? point) -> ()");
  m.def(
      "correlation(Tensor image, Tensor code, int[] stride, int[] pads, bool tf32, Tensor(a!) partials, "
      "Tensor(b!) result) -> ()");
  m.def("residual_tail(float scale, Tensor? x, Tensor? mask, Tensor(a!) result) -> ()");
  m.def(
      "step_tail(Tensor scale, Tensor? base, Tensor? lmbda, Tensor? mu, bool nonneg, Tensor? previous, float beta, "
      "Tensor(a!) code, Tensor(b!)? point) -> ()");
  m.def(
      "fista(Tensor x, Tensor dictionary, Tensor lmbda, Tensor mu, Tensor step_size, Tensor? z0, Tensor? mask, "
      "int[] stride, int[] pads, bool nonneg, bool gradient_at_code, float[] weights, bool tf32, int[] plan, "
      "Tensor(a!) z) -> ()");
  m.def(
      "fista_backward(Tensor grad, Tensor x, Tensor dictionary, Tensor lmbda, Tensor mu, Tensor step_size, "
      "Tensor? z0, Tensor? mask, int[] stride, int[] pads, bool nonneg, float[] weights, bool tf32, int[] plan, "
      "Tensor z, Tensor(a!)? grad_x, Tensor(b!)? grad_z0, Tensor(c!)? penalty_partials, Tensor(d!)? penalty, "
      "Tensor(e!)? partials, Tensor(f!)? grad_dictionary) -> ()");
  m.def(
      "plan(int[] shape, int n_iter, bool from_code, bool momentum, bool backward, int element, int shared_limit, "
      "int processors) -> int[]");
  m.def("direct_plan(int[] shape, bool synthesis, int element, bool tensor_cores) -> int[]");
  m.def("product_bytes(int element) -> int");
  m.def("built() -> bool");
  m.def("runs() -> bool");
}

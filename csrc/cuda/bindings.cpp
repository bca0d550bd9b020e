// The ops csc_cuda::* on torch's tensors: device, stream and types; the rest is calls.h.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "calls.h"

// It lives in libtorch_cuda, which a CPU build of torch has not: there nothing below is ever called.
#pragma weak aoti_torch_get_current_cuda_stream

namespace csc::cuda {
namespace {

using Stable = torch::stable::Tensor;

class Torch {
 public:
  Torch(const Stable& tensor) : tensor_(tensor) {}
  int64_t size(int d) const { return tensor_.size(d); }
  int64_t stride(int d) const { return tensor_.stride(d); }
  int64_t dim() const { return tensor_.dim(); }
  void* data_ptr() const { return tensor_.data_ptr(); }
  bool is_cpu() const { return tensor_.is_cpu(); }
  Element element() const {
    switch (tensor_.scalar_type()) {
      case torch::headeronly::ScalarType::Float:
        return Element::float32;
      case torch::headeronly::ScalarType::Half:
        return Element::float16;
      case torch::headeronly::ScalarType::BFloat16:
        return Element::bfloat16;
      default:
        throw std::runtime_error("the CUDA kernels take float32, float16 and bfloat16");
    }
  }

 private:
  Stable tensor_;
};

std::optional<Torch> optional(const std::optional<Stable>& tensor) {
  return tensor ? std::optional<Torch>(*tensor) : std::nullopt;
}

// The device and the stream of a call: those of its first tensor, and the caller's current ones again afterwards.
class Context {
 public:
  explicit Context(const Stable& tensor) : guard_(tensor.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream_));
  }
  void* stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

using MaybeTensor = std::optional<Stable>;

void synthesis_op(Stable z, Stable dictionary, Ints stride, Ints pads, double scale, MaybeTensor x, MaybeTensor mask,
                  bool tf32, Ints plan, Stable result) {
  const Context context(z);
  synthesis<Torch>(z, dictionary, stride, pads, scale, optional(x), optional(mask), tf32, plan, result,
                   context.stream());
}

void analysis_op(Stable image, Stable dictionary, Ints stride, Ints pads, Stable scale, MaybeTensor base,
                 MaybeTensor lmbda, MaybeTensor mu, bool nonneg, MaybeTensor previous, double beta, bool tf32,
                 Ints plan, Stable code, MaybeTensor point) {
  const Context context(image);
  analysis<Torch>(image, dictionary, stride, pads, scale, optional(base), optional(lmbda), optional(mu), nonneg,
                  optional(previous), beta, tf32, plan, code, optional(point), context.stream());
}

void correlation_op(Stable image, Stable code, Ints stride, Ints pads, bool tf32, Stable partials, Stable result) {
  const Context context(image);
  correlation<Torch>(image, code, stride, pads, tf32, partials, result, context.stream());
}

void residual_tail_op(double scale, MaybeTensor x, MaybeTensor mask, Stable result) {
  const Context context(result);
  residual_tail<Torch>(scale, optional(x), optional(mask), result, context.stream());
}

void step_tail_op(Stable scale, MaybeTensor base, MaybeTensor lmbda, MaybeTensor mu, bool nonneg, MaybeTensor previous,
                  double beta, Stable code, MaybeTensor point) {
  const Context context(code);
  step_tail<Torch>(scale, optional(base), optional(lmbda), optional(mu), nonneg, optional(previous), beta, code,
                   optional(point), context.stream());
}

void fista_op(Stable x, Stable dictionary, Stable lmbda, Stable mu, Stable step_size, MaybeTensor z0, MaybeTensor mask,
              Ints stride, Ints pads, bool nonneg, bool gradient_at_code, std::vector<double> weights, bool tf32,
              Ints plan, Stable z) {
  const Context context(x);
  fista<Torch>(x, dictionary, lmbda, mu, step_size, optional(z0), optional(mask), stride, pads, nonneg,
               gradient_at_code, weights, tf32, plan, z, context.stream());
}

void fista_backward_op(Stable grad, Stable x, Stable dictionary, Stable lmbda, Stable mu, Stable step_size,
                       MaybeTensor z0, MaybeTensor mask, Ints stride, Ints pads, bool nonneg,
                       std::vector<double> weights, bool tf32, Ints plan, Stable z, MaybeTensor grad_x,
                       MaybeTensor grad_z0, MaybeTensor penalty_partials, MaybeTensor penalty, MaybeTensor partials,
                       MaybeTensor grad_dictionary) {
  const Context context(x);
  fista_backward<Torch>(grad, x, dictionary, lmbda, mu, step_size, optional(z0), optional(mask), stride, pads, nonneg,
                        weights, tf32, plan, z, optional(grad_x), optional(grad_z0), optional(penalty_partials),
                        optional(penalty), optional(partials), optional(grad_dictionary), context.stream());
}

}  // namespace
}  // namespace csc::cuda

STABLE_TORCH_LIBRARY_IMPL(csc_cuda, CompositeExplicitAutograd, m) { m.impl("runs", TORCH_BOX(&csc::cuda::runs)); }

STABLE_TORCH_LIBRARY_IMPL(csc_cuda, CUDA, m) {
  m.impl("synthesis", TORCH_BOX(&csc::cuda::synthesis_op));
  m.impl("analysis", TORCH_BOX(&csc::cuda::analysis_op));
  m.impl("correlation", TORCH_BOX(&csc::cuda::correlation_op));
  m.impl("residual_tail", TORCH_BOX(&csc::cuda::residual_tail_op));
  m.impl("step_tail", TORCH_BOX(&csc::cuda::step_tail_op));
  m.impl("fista", TORCH_BOX(&csc::cuda::fista_op));
  m.impl("fista_backward", TORCH_BOX(&csc::cuda::fista_backward_op));
}

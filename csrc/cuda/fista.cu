// The whole solve of a stem: x is read once and z written once, whatever n_iter is.
//
// Blocks are persistent: each takes tile after tile. A step is a synthesis into the residual, a barrier, and an
// analysis that changes the code in place, each on one halo less than the step before.

#include "launch.h"
#include "stem.cuh"

namespace csc::cuda {
namespace {

template <typename P>
class Solve : public Stem<P> {
 public:
  using Element = typename P::Element;
  using Base = Stem<P>;
  using Base::a_;

  __device__ Solve(const SolveArguments& a, const StemLayout& layout, unsigned char* shared)
      : Base(a, layout, shared),
        t_(load(a.step_size, 0, 0, 0, 0)),
        halo_(forward_halo(a.n_iter, a.start.data)),
        momentum_(momentum_acts(a.weights, a.n_iter)),
        code_(this->code_buffer(0)),
        point_(this->code_buffer(momentum_ ? 1 : 0)),
        residual_(this->image_buffer(2)) {}

  __device__ void run() {
    this->load_dictionary();
    this->each_tile(halo_, [&](int64_t, const Place& at, Shared<Element> x) { solve(at, x); });
  }

 private:
  __device__ void solve(const Place& at, Shared<Element> x) {
    bool from_code = a_.start.data;
    if (from_code) {
      this->each_code(at, this->around(at, a_.n_iter), [&](int k, int i, int j, int index, bool inside) {
        const float value = inside ? load<Element>(a_.start, at.n, k, i, j) : 0.0f;
        code_[index] = from_float<Element>(value);
        if (momentum_) point_[index] = from_float<Element>(value);
      });
      __syncthreads();
    }
    for (int step = 1; step <= a_.n_iter; ++step) {
      const Region codes = this->around(at, a_.n_iter - step);
      Shared<Element> image = x;
      if (from_code) {
        residual(at, x, this->around(at, a_.n_iter - step + 1), this->window(codes));
        image = residual_;
        __syncthreads();
      } else if (a_.mask.data) {
        this->mask_image(at, x, residual_);
        image = residual_;
        __syncthreads();
      }
      advance(at, image, codes, step, from_code);
      from_code = true;
      if (step < a_.n_iter) __syncthreads();
    }
  }

  __device__ void residual(const Place& at, Shared<Element> x, const Region& valid, const Region& pixels) {
    this->synthesis(at, a_.gradient_at_code ? code_ : point_, valid, pixels,
                    [&](int m, int h, int w, int index, float sum) {
                      float value = 0;
                      if (this->in_image(h, w)) {
                        value = to_float(x[index]) - sum;
                        if (a_.mask.data) value *= load<Element>(a_.mask, at.n, m, h, w);
                      }
                      residual_[index] = from_float<Element>(value);
                    });
  }

  // The code and the point that the next step starts from; the last code goes to z.
  __device__ void advance(const Place& at, Shared<Element> image, const Region& codes, int step, bool from_code) {
    const bool last = step == a_.n_iter;
    const float beta = a_.weights[step - 1];
    this->analysis(at, image, codes, last && a_.z.column == 1,
                   [&](int k, int i, int j, int index, bool inside, float sum) {
                     float value = 0;
                     if (inside) {
                       value = t_ * sum;
                       if (from_code) value += to_float(point_[index]);
                       value = prox(value, t_, a_.lmbda, a_.mu, a_.nonneg, at.n, k, i, j);
                     }
                     if (last) {
                       if (inside) store<Element>(a_.z, at.n, k, i, j, value);
                       return;
                     }
                     if (momentum_) {
                       const float before = inside && from_code ? to_float(code_[index]) : 0.0f;
                       point_[index] = from_float<Element>(value + beta * (value - before));
                     }
                     code_[index] = from_float<Element>(value);
                   });
  }

  const float t_;
  const int halo_;
  const bool momentum_;
  const Shared<Element> code_, point_, residual_;
};

template <typename P>
__global__ void __launch_bounds__(kStemThreads, 1) fista_kernel(const __grid_constant__ SolveArguments a) {
  const StemLayout layout = forward_layout(a.shape, a.tile_rows, a.tile_columns, a.n_iter, a.start.data,
                                           momentum_acts(a.weights, a.n_iter), sizeof(typename P::Element));
  Solve<P>(a, layout, dynamic_shared()).run();
}

}  // namespace

void launch_fista(const SolveArguments& a, Product product, void* stream) {
  with_product(product, [&](auto policy) {
    using P = decltype(policy);
    const StemLayout layout = forward_layout(a.shape, a.tile_rows, a.tile_columns, a.n_iter, a.start.data,
                                             momentum_acts(a.weights, a.n_iter), sizeof(typename P::Element));
    launch(fista_kernel<P>, dim3(a.blocks), kStemThreads, layout.bytes, stream, a);
  });
}

}  // namespace csc::cuda

// The dictionary's gradient: sums over positions of code * image, in two passes and without atomics. The ranges of
// positions do not depend on the device, so that the bits do not either.

#include "implicit_product.cuh"
#include "launch.h"

namespace csc::cuda {
namespace {

template <typename Element>
struct CodeRows {
  const Shape& s;
  const View& code;
  __device__ int at(int k) const { return k; }
  __device__ float load(int k, int64_t position) const {
    const Position p = position_of(position, s.code_height, s.code_width);
    return cuda::load<Element>(code, p.n, k, p.row, p.column);
  }
};

template <typename Element>
struct ImageTaps {
  const Shape& s;
  const View& image;
  __device__ Tap at(int64_t tap) const { return tap_of(tap, s); }
  __device__ float load(const Tap& tap, int64_t position) const {
    const Position p = position_of(position, s.code_height, s.code_width);
    const int h = p.row * s.stride_height - s.top + tap.row, w = p.column * s.stride_width - s.left + tap.column;
    const bool inside = h >= 0 && h < s.height && w >= 0 && w < s.width;
    return inside ? cuda::load<Element>(image, p.n, tap.channel, h, w) : 0.0f;
  }
};

template <typename P>
__global__ void __launch_bounds__(kProductThreads, 4)
    correlation_kernel(const __grid_constant__ CorrelationArguments a) {
  using Element = typename P::Element;
  const Shape& s = a.shape;
  const int64_t positions = static_cast<int64_t>(s.batch) * s.code_height * s.code_width;
  const int taps = s.channels * s.kernel_height * s.kernel_width;
  const int64_t split = blockIdx.z;
  float* partial = a.partials + split * s.atoms * taps;
  implicit_product<P>(
      dynamic_shared(), CodeRows<Element>{s, a.code}, s.atoms, ImageTaps<Element>{s, a.image}, taps,
      positions * split / a.splits, positions * (split + 1) / a.splits,
      [&](int k, int64_t tap, float sum) { store_global(partial + static_cast<int64_t>(k) * taps + tap, sum); });
}

}  // namespace

void launch_correlation(const CorrelationArguments& a, Product product, void* stream) {
  const int taps = a.shape.channels * a.shape.kernel_height * a.shape.kernel_width;
  with_product(product, [&](auto policy) {
    using P = decltype(policy);
    const dim3 grid((taps + kProductTile - 1) / kProductTile, (a.shape.atoms + kProductTile - 1) / kProductTile,
                    a.splits);
    launch(correlation_kernel<P>, grid, kProductThreads, product_shared_bytes(sizeof(typename P::Element)), stream, a);
  });
  launch_sums({a.partials, a.result, 1, a.splits, static_cast<int64_t>(a.shape.atoms) * taps}, stream);
}

}  // namespace csc::cuda

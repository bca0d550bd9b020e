// The step: base + t A' r, threshold, 1 / (1 + t mu) and momentum in the epilogue of one convolution.

#include "epilogues.cuh"
#include "implicit_product.cuh"
#include "launch.h"

namespace csc::cuda {
namespace {

template <typename Element>
struct Atoms {
  const Shape& s;
  const View& dictionary;
  __device__ int at(int k) const { return k; }
  __device__ float load(int k, int64_t depth) const {
    const Tap tap = tap_of(depth, s);
    return cuda::load<Element>(dictionary, k, tap.channel, tap.row, tap.column);
  }
};

template <typename Element>
struct Windows {
  const Shape& s;
  const View& image;
  __device__ Position at(int64_t position) const { return position_of(position, s.code_height, s.code_width); }
  __device__ float load(const Position& p, int64_t depth) const {
    const Tap tap = tap_of(depth, s);
    const int h = p.row * s.stride_height - s.top + tap.row, w = p.column * s.stride_width - s.left + tap.column;
    const bool inside = h >= 0 && h < s.height && w >= 0 && w < s.width;
    return inside ? cuda::load<Element>(image, p.n, tap.channel, h, w) : 0.0f;
  }
};

template <typename P>
__global__ void __launch_bounds__(kProductThreads, 4) analysis_kernel(const __grid_constant__ AnalysisArguments a) {
  using Element = typename P::Element;
  const Shape& s = a.shape;
  const int64_t positions = static_cast<int64_t>(s.batch) * s.code_height * s.code_width;
  const int64_t depth = static_cast<int64_t>(s.channels) * s.kernel_height * s.kernel_width;
  const float t = load(a.scale, 0, 0, 0, 0);
  implicit_product<P>(dynamic_shared(), Atoms<Element>{s, a.dictionary}, s.atoms, Windows<Element>{s, a.image},
                      positions, 0, depth, a.code.channel == 1, [&](int k, int64_t position, float sum) {
                        finish_code<Element>(a, t, position_of(position, s.code_height, s.code_width), k, sum);
                      });
}

}  // namespace

void launch_analysis(const AnalysisArguments& a, Product product, void* stream) {
  const int64_t positions = static_cast<int64_t>(a.shape.batch) * a.shape.code_height * a.shape.code_width;
  with_product(product, [&](auto policy) {
    using P = decltype(policy);
    const dim3 grid(static_cast<unsigned>((positions + kProductTile - 1) / kProductTile),
                    (a.shape.atoms + kProductTile - 1) / kProductTile);
    launch(analysis_kernel<P>, grid, kProductThreads, product_shared_bytes(sizeof(typename P::Element)), stream, a);
  });
}

}  // namespace csc::cuda

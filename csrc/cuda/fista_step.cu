// The step: base + t A' r, threshold, 1 / (1 + t mu) and momentum in the epilogue of one convolution.

#include "direct_product.cuh"
#include "epilogues.cuh"
#include "launch.h"

namespace csc::cuda {
namespace {

template <typename Element>
struct Analysis {
  const AnalysisArguments& a;
  const float t;

  __device__ float pixel(int64_t n, int m, int i, int plane_row, int j, int plane_column) const {
    const Shape& s = a.shape;
    const int64_t h = int64_t{i} * s.stride_height + plane_row - s.top;
    const int64_t w = int64_t{j} * s.stride_width + plane_column - s.left;
    return h >= 0 && h < s.height && w >= 0 && w < s.width ? load<Element>(a.image, n, m, h, w) : 0.0f;
  }

  __device__ float weight(int k, int m, int dy, int dx) const { return load<Element>(a.dictionary, k, m, dy, dx); }

  __device__ bool meets(int, int, int) const { return true; }

  __device__ void finish(int k, int64_t n, int i, int j, float sum) const {
    finish_code<Element>(a, t, Position{n, i, j}, k, sum);
  }
};

template <typename P, int kResultBlocks>
__global__ void __launch_bounds__(kDirectThreads, 2)
    analysis_kernel(const __grid_constant__ Direct<AnalysisArguments> d) {
  const Analysis<typename P::Element> analysis{d.call, load(d.call.scale, 0, 0, 0, 0)};
  DirectProduct<P, kResultBlocks, Analysis<typename P::Element>>(analysis, d.lattice, d.layout, dynamic_shared())
      .run(d.call.code.channel == 1);
}

}  // namespace

void launch_analysis(const AnalysisArguments& a, const DirectPlan& plan, Product product, void* stream) {
  with_product(product, [&](auto policy) {
    using P = decltype(policy);
    launch_direct<P>(analysis_kernel<P, kManyResults>, analysis_kernel<P, kFewResults>, a, analysis_lattice(a.shape),
                     plan, stream);
  });
}

}  // namespace csc::cuda

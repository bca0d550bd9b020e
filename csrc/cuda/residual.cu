// r = mask * (x - A z) at any stride, kernel and number of channels, and mask * scale * A z.
//
// With strides the pixels that see the same codes, a stride's square of them, are results of one position: pixel
// s p + a - top sees tap s u + a of the code p - u, for every u.

#include "direct_product.cuh"
#include "epilogues.cuh"
#include "launch.h"

namespace csc::cuda {
namespace {

template <typename Element>
class Synthesis {
 public:
  const SynthesisArguments& a;
  const Lattice& lattice;

  __device__ float pixel(int64_t n, int k, int i, int, int j, int) const {
    const Shape& s = a.shape;
    const int row = i + s.top / s.stride_height - (lattice.tap_rows - 1);
    const int column = j + s.left / s.stride_width - (lattice.tap_columns - 1);
    const bool inside = row >= 0 && row < s.code_height && column >= 0 && column < s.code_width;
    return inside ? load<Element>(a.code, n, k, row, column) : 0.0f;
  }

  __device__ float weight(int result, int k, int r, int c) const {
    const Pixel p = pixel_of(result);
    const int dy = kernel_row(p, r), dx = kernel_column(p, c);
    const bool exists = p.channel < a.shape.channels && dy < a.shape.kernel_height && dx < a.shape.kernel_width;
    return exists ? load<Element>(a.dictionary, k, p.channel, dy, dx) : 0.0f;
  }

  __device__ bool meets(int result, int r, int c) const {
    if (!lacks_taps(a.shape)) return true;
    const Pixel p = pixel_of(result);
    return kernel_row(p, r) < a.shape.kernel_height && kernel_column(p, c) < a.shape.kernel_width;
  }

  __device__ void finish(int result, int64_t n, int i, int j, float sum) const {
    const Shape& s = a.shape;
    const Pixel p = pixel_of(result);
    const int h = (i + s.top / s.stride_height) * s.stride_height + p.row - s.top;
    const int w = (j + s.left / s.stride_width) * s.stride_width + p.column - s.left;
    if (p.channel < s.channels && h >= 0 && h < s.height && w >= 0 && w < s.width)
      finish_pixel<Element>(a, Position{n, h, w}, p.channel, sum);
  }

 private:
  // Of the pixels that share a position.
  struct Pixel {
    int row, column, channel;
  };

  __device__ Pixel pixel_of(int result) const {
    const int channels = phase_results(a.shape), phase = result / channels;
    return {phase / a.shape.stride_width, phase % a.shape.stride_width, result % channels};
  }
  __device__ int kernel_row(const Pixel& p, int r) const {
    return (lattice.tap_rows - 1 - r) * a.shape.stride_height + p.row;
  }
  __device__ int kernel_column(const Pixel& p, int c) const {
    return (lattice.tap_columns - 1 - c) * a.shape.stride_width + p.column;
  }
};

template <typename P, int kResultBlocks>
__global__ void __launch_bounds__(kDirectThreads, 2)
    synthesis_kernel(const __grid_constant__ Direct<SynthesisArguments> d) {
  const Synthesis<typename P::Element> synthesis{d.call, d.lattice};
  DirectProduct<P, kResultBlocks, Synthesis<typename P::Element>>(synthesis, d.lattice, d.layout, dynamic_shared())
      .run(d.call.result.channel == 1 && d.call.shape.channels > 1);
}

}  // namespace

void launch_synthesis(const SynthesisArguments& a, const DirectPlan& plan, Product product, void* stream) {
  with_product(product, [&](auto policy) {
    using P = decltype(policy);
    launch_direct<P>(synthesis_kernel<P, kManyResults>, synthesis_kernel<P, kFewResults>, a, synthesis_lattice(a.shape),
                     plan, stream);
  });
}

}  // namespace csc::cuda

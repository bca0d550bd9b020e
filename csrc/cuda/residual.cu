// r = mask * (x - A z) at any stride, kernel and number of channels, and mask * scale * A z.
//
// A pixel (h, w) of channel m sees tap (dy, dx) of atom k from the code at ((h + top - dy) / sH,
// (w + left - dx) / sW), where the stride divides that.

#include "epilogues.cuh"
#include "implicit_product.cuh"
#include "launch.h"

namespace csc::cuda {
namespace {

// Depth (k, dy, dx).
struct AtomTap {
  int atom, row, column;
};

__device__ AtomTap atom_tap_of(int64_t depth, const Shape& s) {
  const Tap tap = tap_of(depth, s);
  return {tap.channel, tap.row, tap.column};
}

template <typename Element>
struct Channels {
  const Shape& s;
  const View& dictionary;
  __device__ int at(int m) const { return m; }
  __device__ float load(int m, int64_t depth) const {
    const AtomTap tap = atom_tap_of(depth, s);
    return cuda::load<Element>(dictionary, tap.atom, m, tap.row, tap.column);
  }
};

template <typename Element>
struct Pixels {
  const Shape& s;
  const View& code;
  __device__ Position at(int64_t pixel) const { return position_of(pixel, s.height, s.width); }
  __device__ float load(const Position& p, int64_t depth) const {
    const AtomTap tap = atom_tap_of(depth, s);
    const int h = p.row + s.top - tap.row, w = p.column + s.left - tap.column;
    if (h < 0 || w < 0 || h % s.stride_height || w % s.stride_width) return 0;
    const int i = h / s.stride_height, j = w / s.stride_width;
    return i < s.code_height && j < s.code_width ? cuda::load<Element>(code, p.n, tap.atom, i, j) : 0.0f;
  }
};

template <typename P>
__global__ void __launch_bounds__(kProductThreads, 4) synthesis_kernel(const __grid_constant__ SynthesisArguments a) {
  using Element = typename P::Element;
  const Shape& s = a.shape;
  const int64_t pixels = static_cast<int64_t>(s.batch) * s.height * s.width;
  const int64_t depth = static_cast<int64_t>(s.atoms) * s.kernel_height * s.kernel_width;
  implicit_product<P>(dynamic_shared(), Channels<Element>{s, a.dictionary}, s.channels, Pixels<Element>{s, a.code},
                      pixels, 0, depth, a.result.channel == 1, [&](int m, int64_t pixel, float sum) {
                        finish_pixel<Element>(a, position_of(pixel, s.height, s.width), m, sum);
                      });
}

}  // namespace

void launch_synthesis(const SynthesisArguments& a, Product product, void* stream) {
  const int64_t pixels = static_cast<int64_t>(a.shape.batch) * a.shape.height * a.shape.width;
  with_product(product, [&](auto policy) {
    using P = decltype(policy);
    const dim3 grid(static_cast<unsigned>((pixels + kProductTile - 1) / kProductTile),
                    (a.shape.channels + kProductTile - 1) / kProductTile);
    launch(synthesis_kernel<P>, grid, kProductThreads, product_shared_bytes(sizeof(typename P::Element)), stream, a);
  });
}

}  // namespace csc::cuda

// csc_cuda::plan: the tile that the stem kernels take, or nothing where no tile fits; and product_bytes, the shared
// memory of the others. They need no GPU.

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <vector>

#include "product_layout.h"
#include "stem_layout.h"

namespace csc::cuda {
namespace {

// shape: N, M, H, W, K, H', W', kH, kW, sH, sW, top, left. Returns rows, columns, blocks, bytes of shared memory.
std::vector<int64_t> plan(std::vector<int64_t> shape, int64_t n_iter, bool from_code, bool momentum, bool backward,
                          int64_t element, int64_t shared_limit, int64_t processors) {
  int values[13];
  for (int i = 0; i < 13; ++i) {
    if (shape[i] > INT32_MAX / 64) return {};
    values[i] = static_cast<int>(shape[i]);
  }
  const auto [batch, channels, height, width, atoms, code_height, code_width, kernel_height, kernel_width,
              stride_height, stride_width, top, left] = values;
  const Shape s{batch,         channels,     height,        width,        atoms, code_height, code_width,
                kernel_height, kernel_width, stride_height, stride_width, top,   left};
  if (n_iter > kMostIterations || batch == 0) return {};
  // No block has room for such a dictionary, and no int for its size.
  if (shape[7] > shared_limit / (shape[1] * shape[8])) return {};
  const int steps = static_cast<int>(n_iter), bytes = static_cast<int>(element);
  const StemPlan best = plan_stem(s, static_cast<int>(shared_limit), static_cast<int>(processors), [&](int r, int c) {
    return backward ? backward_layout(s, r, c, steps, from_code, bytes)
                    : forward_layout(s, r, c, steps, from_code, momentum, bytes);
  });
  if (best.rows == 0) return {};
  return {best.rows, best.columns, best.blocks, best.bytes};
}

int64_t product_bytes(int64_t element) { return product_shared_bytes(static_cast<int>(element)); }

bool built() {
#ifdef CSC_WITH_CUDA
  return true;
#else
  return false;
#endif
}

}  // namespace
}  // namespace csc::cuda

STABLE_TORCH_LIBRARY_IMPL(csc_cuda, CompositeExplicitAutograd, m) {
  m.impl("plan", TORCH_BOX(&csc::cuda::plan));
  m.impl("product_bytes", TORCH_BOX(&csc::cuda::product_bytes));
  m.impl("built", TORCH_BOX(&csc::cuda::built));
}

// csc_cuda::plan and direct_plan: the tile that the stem kernels take, and the direct convolutions, or nothing where
// none fits; and product_bytes, the shared memory of the correlation. They need no GPU.

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "direct_layout.h"
#include "product_layout.h"
#include "stem_layout.h"

namespace csc::cuda {
namespace {

// N, M, H, W, K, H', W', kH, kW, sH, sW, top, left; nothing where a size is beyond what any plan is for.
std::optional<Shape> shape_of(const std::vector<int64_t>& sizes) {
  int values[13];
  for (int i = 0; i < 13; ++i) {
    if (sizes[i] > INT32_MAX / 64) return std::nullopt;
    values[i] = static_cast<int>(sizes[i]);
  }
  const auto [batch, channels, height, width, atoms, code_height, code_width, kernel_height, kernel_width,
              stride_height, stride_width, top, left] = values;
  return Shape{batch,         channels,     height,        width,        atoms, code_height, code_width,
               kernel_height, kernel_width, stride_height, stride_width, top,   left};
}

// Returns rows, columns, blocks, bytes of shared memory.
std::vector<int64_t> plan(std::vector<int64_t> shape, int64_t n_iter, bool from_code, bool momentum, bool backward,
                          int64_t element, int64_t shared_limit, int64_t processors) {
  const std::optional<Shape> found = shape_of(shape);
  if (!found || n_iter > kMostIterations || found->batch == 0) return {};
  const Shape& s = *found;
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

// Returns samples, rows, columns, whether rows are joined, whether all taps are met at once, bytes of shared memory.
std::vector<int64_t> direct_plan(std::vector<int64_t> shape, bool synthesis, int64_t element, bool tensor_cores) {
  const std::optional<Shape> found = shape_of(shape);
  if (!found) return {};
  // Results of a position; more are strides beyond any use.
  if (synthesis && int64_t{found->stride_height} * found->stride_width > (1 << 24) / phase_results(*found)) return {};
  const Lattice lattice = synthesis ? synthesis_lattice(*found) : analysis_lattice(*found);
  const int bytes = static_cast<int>(element);
  const DirectPlan best = plan_direct(lattice, bytes, tensor_cores);
  if (best.rows == 0) return {};
  const DirectLayout layout(lattice, best, bytes, tensor_cores);
  return {best.samples, best.rows, best.columns, best.joined, best.whole, layout.bytes};
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
  m.impl("direct_plan", TORCH_BOX(&csc::cuda::direct_plan));
  m.impl("product_bytes", TORCH_BOX(&csc::cuda::product_bytes));
  m.impl("built", TORCH_BOX(&csc::cuda::built));
}

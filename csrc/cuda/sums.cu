// The second pass of a sum: partial sums added in a fixed order, so that a result has the same bits every time.

#include "launch.h"
#include "memory.cuh"

namespace csc::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) sums_kernel(const __grid_constant__ SumsArguments a) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= a.groups * a.length) return;
  const float* from = a.partials + index / a.length * a.count * a.length + index % a.length;
  float total = 0;
  for (int64_t p = 0; p < a.count; ++p) total += load_global(from + p * a.length);
  store_global(a.results + index, total);
}

}  // namespace

bool runs() { return has_code(sums_kernel); }

void launch_sums(const SumsArguments& a, void* stream) {
  const int64_t blocks = (a.groups * a.length + kThreads - 1) / kThreads;
  if (blocks) launch(sums_kernel, dim3(static_cast<unsigned>(blocks)), kThreads, 0, stream, a);
}

}  // namespace csc::cuda

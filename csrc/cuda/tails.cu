// The tails of two convolutions that a library (cuDNN) has computed: what remains of the residual and of the step, in
// one pass over memory, in place of the convolution's result.

#include "epilogues.cuh"
#include "launch.h"

namespace csc::cuda {
namespace {

constexpr int kTailThreads = 256, kTailEntries = 8;

// visit(position, channel): this thread's entries of a tensor (batch, channels, rows, columns), neighbours in memory:
// the channels of a pixel are adjacent where the tensor's are, else the columns of a row.
template <typename Visit>
__device__ void each_entry(const View& tensor, int64_t batch, int channels, int rows, int columns, const Visit& visit) {
  const bool adjacent = tensor.channel == 1;
  const int outer = adjacent ? rows : channels, middle = adjacent ? columns : rows,
            inner = adjacent ? channels : columns;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kTailThreads + threadIdx.x) * kTailEntries;
  const Position at = position_of(first, middle, inner);
  int64_t n = at.n / outer;
  int i = static_cast<int>(at.n % outer), j = at.row, k = at.column;
  for (int e = 0; e < kTailEntries && n < batch; ++e) {
    visit(adjacent ? Position{n, i, j} : Position{n, j, k}, adjacent ? k : i);
    if (++k < inner) continue;
    k = 0;
    if (++j < middle) continue;
    j = 0;
    if (++i < outer) continue;
    i = 0;
    ++n;
  }
}

template <typename Element>
__global__ void __launch_bounds__(kTailThreads) residual_tail_kernel(const __grid_constant__ SynthesisArguments a) {
  const Shape& s = a.shape;
  each_entry(a.result, s.batch, s.channels, s.height, s.width, [&](const Position& p, int m) {
    finish_pixel<Element>(a, p, m, load<Element>(a.result, p.n, m, p.row, p.column));
  });
}

template <typename Element>
__global__ void __launch_bounds__(kTailThreads) step_tail_kernel(const __grid_constant__ AnalysisArguments a) {
  const Shape& s = a.shape;
  const float t = load(a.scale, 0, 0, 0, 0);
  each_entry(a.code, s.batch, s.atoms, s.code_height, s.code_width, [&](const Position& p, int k) {
    finish_code<Element>(a, t, p, k, load<Element>(a.code, p.n, k, p.row, p.column));
  });
}

dim3 grid_of(int64_t entries) {
  constexpr int kOfBlock = kTailThreads * kTailEntries;
  return dim3(static_cast<unsigned>((entries + kOfBlock - 1) / kOfBlock));
}

}  // namespace

void launch_residual_tail(const SynthesisArguments& a, Element element, void* stream) {
  const Shape& s = a.shape;
  const dim3 grid = grid_of(int64_t{1} * s.batch * s.channels * s.height * s.width);
  with_element(element,
               [&](auto zero) { launch(residual_tail_kernel<decltype(zero)>, grid, kTailThreads, 0, stream, a); });
}

void launch_step_tail(const AnalysisArguments& a, Element element, void* stream) {
  const Shape& s = a.shape;
  const dim3 grid = grid_of(int64_t{1} * s.batch * s.atoms * s.code_height * s.code_width);
  with_element(element, [&](auto zero) { launch(step_tail_kernel<decltype(zero)>, grid, kTailThreads, 0, stream, a); });
}

}  // namespace csc::cuda

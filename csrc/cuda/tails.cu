// The tails of two convolutions that a library (cuDNN) has computed: what remains of the residual and of the step, in
// one pass over memory, in place of the convolution's result.

#include "epilogues.cuh"
#include "launch.h"

namespace csc::cuda {
namespace {

constexpr int kTailThreads = 256, kTailEntries = 8;

// visit(position, channel): the entries of a tensor (batch, channels, rows, columns) in the order of its memory, where
// the channels of a pixel are adjacent or the columns of a row; neighbouring threads take neighbours.
template <typename Visit>
__device__ void each_entry(const View& tensor, int64_t batch, int channels, int rows, int columns, const Visit& visit) {
  const bool adjacent = tensor.channel == 1;
  const unsigned outer = adjacent ? rows : channels, middle = adjacent ? columns : rows;
  const unsigned inner = adjacent ? channels : columns;
  // From the block's first entry on, 32 bits are enough.
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTailThreads * kTailEntries;
  const Position block = position_of(first, middle, inner);
  const int64_t block_n = block.n / outer;
  const unsigned block_i = static_cast<unsigned>(block.n % outer);
#pragma unroll 2
  for (unsigned e = 0; e < kTailEntries; ++e) {
    const unsigned column = block.column + e * kTailThreads + threadIdx.x, line = block.row + column / inner;
    const unsigned plane = block_i + line / middle;
    const int64_t n = block_n + plane / outer;
    if (n >= batch) return;
    const int i = plane % outer, j = line % middle, k = column % inner;
    visit(adjacent ? Position{n, i, j} : Position{n, j, k}, adjacent ? k : i);
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

// A convolution as a matrix product whose operands are gathered where they lie: nothing is unfolded in memory.
//
// result[row, column] = sum over depth of rows(row, depth) * columns(column, depth), of any sizes. A block
// computes 64 x 64 results with 4 warps, each 64 rows x 16 columns; the operands pass through shared memory 32
// deep, stored depth first.
//
//   Operand::at(index) -> what can be known of a row or column before the depth is
//   Operand::load(at, depth) -> float
//   write(row, column, value)

#pragma once

#include "numbers.cuh"
#include "product.cuh"
#include "product_layout.h"

namespace csc::cuda {

// Depths [begin, end) of one block's tile.
template <typename P, typename Rows, typename Columns, typename Write>
__device__ void implicit_product(void* shared, const Rows& rows, int row_count, const Columns& columns,
                                 int64_t column_count, int64_t begin, int64_t end, const Write& write) {
  using Element = typename P::Element;
  const Shared<Element> left(shared);
  const Shared<Element> right = left + kProductTile * kDepthPitch;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const Shared<float> results = Shared<float>((right + kProductTile * kDepthPitch).get()) + warp * 16 * kResultPitch;
  const int row0 = blockIdx.y * kProductTile;
  const int64_t column0 = static_cast<int64_t>(blockIdx.x) * kProductTile;
  const int row_blocks = min(kProductTile, row_count - row0 + 15) / 16;

  typename P::Sums sums[kProductTile / 16];
#pragma unroll
  for (int b = 0; b < kProductTile / 16; ++b) sums[b].clear();

  const int64_t my_column = column0 + thread % kProductTile;
  const bool has_column = my_column < column_count;
  const auto column_at = columns.at(has_column ? my_column : 0);
  for (int64_t depth0 = begin; depth0 < end; depth0 += kProductDepth) {
    for (int d = thread / kProductTile; d < kProductDepth; d += kProductThreads / kProductTile) {
      const bool here = has_column && depth0 + d < end;
      right[thread % kProductTile * kDepthPitch + d] =
          from_float<Element>(here ? columns.load(column_at, depth0 + d) : 0.0f);
    }
    for (int r = thread / kProductDepth; r < row_blocks * 16; r += kProductThreads / kProductDepth) {
      const int d = thread % kProductDepth;
      const bool here = row0 + r < row_count && depth0 + d < end;
      left[r * kDepthPitch + d] = from_float<Element>(here ? rows.load(rows.at(row0 + r), depth0 + d) : 0.0f);
    }
    __syncthreads();
#pragma unroll
    for (int b = 0; b < kProductTile / 16; ++b)
      if (b < row_blocks)
        sums[b].multiply(left + b * 16 * kDepthPitch, kDepthPitch, right + warp * 16 * kDepthPitch, kDepthPitch,
                         kProductDepth);
    __syncthreads();
  }

#pragma unroll
  for (int b = 0; b < kProductTile / 16; ++b) {
    if (b < row_blocks) {
      sums[b].store(results, kResultPitch);
      __syncwarp();
      for (int e = lane; e < 256; e += 32) {
        const int row = row0 + b * 16 + e / 16;
        const int64_t column = column0 + warp * 16 + e % 16;
        if (row < row_count && column < column_count) write(row, column, results[e / 16 * kResultPitch + e % 16]);
      }
      __syncwarp();
    }
  }
}

// A tap (m, dy, dx) of the dictionary, from its number.
struct Tap {
  int channel, row, column;
};

__device__ inline Tap tap_of(int64_t index, const Shape& s) {
  const int64_t line = index / s.kernel_width;
  return {static_cast<int>(line / s.kernel_height), static_cast<int>(line % s.kernel_height),
          static_cast<int>(index % s.kernel_width)};
}

}  // namespace csc::cuda

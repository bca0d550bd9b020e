// Threads, tile and shared memory of an implicit product.

#pragma once

namespace csc::cuda {

constexpr int kProductThreads = 128;
constexpr int kProductTile = 64;
constexpr int kProductDepth = 32;
constexpr int kDepthPitch = kProductDepth + 8;
constexpr int kResultPitch = 20;

// Two operands, and a tile of sums for every warp. `element`: bytes.
constexpr int product_shared_bytes(int element) {
  return 2 * kProductTile * kDepthPitch * element + kProductThreads / 32 * 16 * kResultPitch * 4;
}

}  // namespace csc::cuda

// A convolution as matrix products whose one operand lies in shared memory as an image: nothing is unfolded.
//
// A block computes up to 64 results of up to 256 positions, or 16 of 1024 (direct_layout.h). Channels pass through
// shared memory a chunk at a time, the image once and the weights some taps at a time; every tap is a product of 16
// results x 16 positions with the image from that tap's shift on.
//
//   Convolution::pixel(n, channel, i, a, j, b) -> float: row i of plane row a, column j of plane column b
//   Convolution::weight(result, channel, tap row, tap column) -> float
//   Convolution::meets(result, tap row, tap column) -> bool: whether the 16 results from there on have that tap
//   Convolution::finish(result, n, i, j, sum)

#pragma once

#include "direct_layout.h"
#include "numbers.cuh"
#include "product.cuh"
#include "product_layout.h"

namespace csc::cuda {

// What a kernel takes: a call, and how its blocks work.
template <typename Call>
struct Direct {
  Call call;
  Lattice lattice;
  DirectLayout layout;
};

template <typename P, int kResultBlocks, typename Convolution>
class DirectProduct {
 public:
  using Element = typename P::Element;
  static constexpr int kResults = 16 * kResultBlocks, kSegments = kWarpTiles / kResultBlocks;

  __device__ DirectProduct(const Convolution& convolution, const Lattice& lattice, const DirectLayout& layout,
                           unsigned char* shared)
      : c_(convolution),
        l_(lattice),
        d_(layout),
        image_(shared),
        weights_(shared + layout.weights),
        sums_(shared + layout.sums + threadIdx.x / 32 * 16 * kResultPitch * 4),
        warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32) {
    // The blocks of one tile are neighbours, so that the image is in the second-level cache for all but the first.
    const int blocks = (l_.results + kResults - 1) / kResults;
    const int across = (l_.columns + d_.columns - 1) / d_.columns, down = (l_.rows + d_.rows - 1) / d_.rows;
    const int64_t tile = blockIdx.x / blocks;
    result_ = blockIdx.x % blocks * kResults;
    column_ = static_cast<int>(tile % across) * d_.columns;
    row_ = static_cast<int>(tile / across % down) * d_.rows;
    n_ = tile / across / down * d_.samples;
    result_blocks_ = min(kResults, l_.results - result_ + 15) / 16;
  }

  // `results_adjacent`: neighbouring results are neighbours in memory.
  __device__ void run(bool results_adjacent) const {
    typename P::Sums sums[kSegments][kResultBlocks];
    int firsts[kSegments];
#pragma unroll
    for (int g = 0; g < kSegments; ++g) {
      firsts[g] = first(warp_ + g * kDirectWarps) * d_.pitch;
#pragma unroll
      for (int b = 0; b < kResultBlocks; ++b) sums[g][b].clear();
    }

    for (int channel = 0; channel < l_.channels; channel += d_.chunk) {
      // A chunk is one product on tensor cores, zeros where there are no more channels.
      const int count = P::kDepth > 1 ? P::kDepth : min(d_.chunk, l_.channels - channel);
      for (int band = 0; band < l_.tap_rows; band += d_.band_rows) {
        fetch_image(channel, count, band);
        const int taps = d_.band_rows * l_.tap_columns;
        for (int tap = 0; tap < taps; tap += d_.taps_at_once) {
          const int at_once = min(d_.taps_at_once, taps - tap);
          fetch_weights(channel, count, band * l_.tap_columns + tap, at_once);
          __syncthreads();
          for (int i = 0; i < at_once; ++i) {
            const int r = band + (tap + i) / l_.tap_columns, c = (tap + i) % l_.tap_columns;
            const Shared<Element> weights = weights_ + i * kResults * d_.pitch;
            const Shared<Element> image = image_ + shift(tap + i) * d_.pitch;
#pragma unroll
            for (int g = 0; g < kSegments; ++g) {
              if (warp_ + g * kDirectWarps >= d_.segments) break;
#pragma unroll
              for (int b = 0; b < kResultBlocks; ++b)
                if (b < result_blocks_ && c_.meets(result_ + b * 16, r, c))
                  sums[g][b].multiply(weights + b * 16 * d_.pitch, d_.pitch, image + firsts[g], d_.pitch, count);
            }
          }
          __syncthreads();
        }
      }
    }

#pragma unroll 1
    for (int tile = 0; tile < kWarpTiles; ++tile) {
      const int segment = warp_ + tile / kResultBlocks * kDirectWarps, block = tile % kResultBlocks;
      if (segment >= d_.segments || block >= result_blocks_) continue;
      // Registers have no address: a store for each tile, but one epilogue.
#pragma unroll
      for (int g = 0; g < kSegments; ++g)
#pragma unroll
        for (int b = 0; b < kResultBlocks; ++b)
          if (tile == g * kResultBlocks + b) sums[g][b].store(sums_, kResultPitch);
      __syncwarp();
      finish(segment, block * 16, results_adjacent);
      __syncwarp();
    }
  }

 private:
  // The first of the 16 positions of a segment, counted in a plane.
  __device__ int first(int segment) const {
    const int run = segment / d_.run_segments;
    const int row = run / d_.rows * d_.region_rows + run % d_.rows;
    return row * d_.region_columns + segment % d_.run_segments * 16;
  }

  // From a position to what a tap of the band sees, counted in planes.
  __device__ int shift(int tap) const {
    const int r = tap / l_.tap_columns, c = tap % l_.tap_columns;
    const int plane = r % l_.period_rows * d_.plane_columns + c % l_.period_columns;
    const int row = plane * d_.samples * d_.region_rows + r / l_.period_rows;
    return row * d_.region_columns + c / l_.period_columns;
  }

  // `count` channels from `channel` on of all that the band of taps sees, zero beyond the tensor.
  __device__ void fetch_image(int channel, int count, int band) const {
    for (int q = threadIdx.x; q < d_.positions; q += kDirectThreads) {
      const int line = q / d_.region_columns, column = q % d_.region_columns;
      const int sample = line / d_.region_rows, plane = sample / d_.samples;
      const int a = plane / d_.plane_columns + band % l_.period_rows, b = plane % d_.plane_columns;
      const int64_t n = n_ + sample % d_.samples;
      const int i = row_ + line % d_.region_rows + band / l_.period_rows, j = column_ + column;
      const bool here = n < l_.batch && plane < d_.plane_rows * d_.plane_columns;
#pragma unroll 4
      for (int c = 0; c < count; ++c) {
        const bool exists = here && channel + c < l_.channels;
        image_[q * d_.pitch + c] = from_float<Element>(exists ? c_.pixel(n, channel + c, i, a, j, b) : 0.0f);
      }
    }
  }

  __device__ void fetch_weights(int channel, int count, int tap, int taps) const {
    for (int e = threadIdx.x; e < result_blocks_ * 16 * count; e += kDirectThreads) {
      const int result = e / count, c = e % count;
      const bool exists = result_ + result < l_.results && channel + c < l_.channels;
      for (int i = 0; i < taps; ++i) {
        const int r = (tap + i) / l_.tap_columns, x = (tap + i) % l_.tap_columns;
        weights_[(i * kResults + result) * d_.pitch + c] =
            from_float<Element>(exists ? c_.weight(result_ + result, channel + c, r, x) : 0.0f);
      }
    }
  }

  // The epilogue of 16 results of a segment.
  __device__ void finish(int segment, int result, bool results_adjacent) const {
    for (int e = lane_; e < 256; e += 32) {
      const int r = results_adjacent ? e % 16 : e / 16, position = results_adjacent ? e / 16 : e % 16;
      if (segment % d_.run_segments * 16 + position >= d_.run) continue;
      const int q = first(segment) + position;
      const int line = q / d_.region_columns, column = q % d_.region_columns;
      const int64_t n = n_ + line / d_.region_rows;
      const int row = line % d_.region_rows;
      const bool own = n < l_.batch && row_ + row < l_.rows && column < d_.columns && column_ + column < l_.columns &&
                       result_ + result + r < l_.results;
      if (own) c_.finish(result_ + result + r, n, row_ + row, column_ + column, sums_[r * kResultPitch + position]);
    }
  }

  const Convolution& c_;
  const Lattice& l_;
  const DirectLayout& d_;
  const Shared<Element> image_, weights_;
  const Shared<float> sums_;
  const int warp_, lane_;
  int64_t n_;
  int row_, column_, result_, result_blocks_;
};

// Calls one of a kernel's two forms, of many results and of few.
template <typename P, typename Call>
void launch_direct(void (*many)(Direct<Call>), void (*few)(Direct<Call>), const Call& call, const Lattice& lattice,
                   const DirectPlan& plan, void* stream) {
  const DirectLayout layout(lattice, plan, sizeof(typename P::Element), P::kDepth > 1);
  launch(result_blocks(lattice) == kFewResults ? few : many, dim3(static_cast<unsigned>(direct_blocks(lattice, plan))),
         kDirectThreads, layout.bytes, stream, Direct<Call>{call, lattice, layout});
}

}  // namespace csc::cuda

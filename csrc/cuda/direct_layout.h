// How a block of a direct convolution lays out its image in shared memory, and which tile it should take.
//
// Both maps are convolutions of stride 1 on a lattice of positions. Of the analysis with stride s, tap dy = s u + a
// meets row s (i + u) + a - top of the image: its rows fall into s planes, and a tap is a plane and a shift u. Of the
// synthesis, the s pixels from s i - top on are so many results of one position, which see the same rows of the code;
// where a kernel is no multiple of its stride some of them lack a tap, and each has 16 results of a product for itself,
// so that no number that is not finite is multiplied by a tap that is not there.
//
//   image     [plane][sample][row][column][channel]: a chunk of channels of what the tile's windows cover
//   weights   [tap][result][channel]
//
// Sixteen positions are one operand as they lie, wherever their windows begin. Runs of positions are the rows of the
// tile or, where rows are short, all of them joined, with what lies between computed and dropped.

#pragma once

#include <algorithm>
#include <cstdint>

#include "arguments.h"
#include "product_layout.h"

namespace csc::cuda {

constexpr int kDirectThreads = 256;
constexpr int kDirectWarps = kDirectThreads / 32;
constexpr int kWarpTiles = 8;    // Tiles of 16 results x 16 positions of a warp.
constexpr int kChunkBytes = 32;  // Of a position's channels at a time.
constexpr int kWeightBytes = 18 * 1024;
constexpr int kSumsBytes = kDirectWarps * 16 * kResultPitch * 4;
constexpr int kUsualBytes = 64 * 1024, kMostBytes = 96 * 1024;

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

struct Lattice {
  int batch, rows, columns;
  int tap_rows, tap_columns;
  int period_rows, period_columns;  // Tap r lies in plane r % period, shifted by r / period.
  int channels, results;
};

constexpr Lattice analysis_lattice(const Shape& s) {
  return {s.batch,         s.code_height,  s.code_width, s.kernel_height, s.kernel_width,
          s.stride_height, s.stride_width, s.channels,   s.atoms};
}

constexpr bool lacks_taps(const Shape& s) {
  return s.kernel_height % s.stride_height || s.kernel_width % s.stride_width;
}

// The channels of a pixel, as results of a position.
constexpr int phase_results(const Shape& s) { return lacks_taps(s) ? ceil_div(s.channels, 16) * 16 : s.channels; }

constexpr Lattice synthesis_lattice(const Shape& s) {
  return {s.batch,
          (s.height - 1 + s.top) / s.stride_height - s.top / s.stride_height + 1,
          (s.width - 1 + s.left) / s.stride_width - s.left / s.stride_width + 1,
          ceil_div(s.kernel_height, s.stride_height),
          ceil_div(s.kernel_width, s.stride_width),
          1,
          1,
          s.atoms,
          s.stride_height * s.stride_width * phase_results(s)};
}

// 16 results of a position that a block computes, times this: few, and so of more positions, where there are no more.
constexpr int kManyResults = 4, kFewResults = 1;
constexpr int result_blocks(const Lattice& l) { return l.results > 16 ? kManyResults : kFewResults; }
constexpr int most_segments(const Lattice& l) { return kWarpTiles / result_blocks(l) * kDirectWarps; }

// The tile of a block. `joined`: its rows are one run. `whole`: all rows of taps are met at once, else one by one.
struct DirectPlan {
  int samples = 0, rows = 0, columns = 0;  // No rows: nothing fits.
  bool joined = false, whole = true;
};

struct DirectLayout {
  int samples, rows, columns;
  int band_rows;  // Of taps.
  int plane_rows, plane_columns, region_rows, region_columns;
  int run, run_segments, segments;  // Positions of a run, and their lines of 16.
  int positions;                    // In shared memory; a line may read 15 beyond the last plane.
  int chunk, pitch, taps_at_once;
  int weights, sums, bytes;  // Where they lie, and the end.

  // `element`: bytes.
  constexpr DirectLayout(const Lattice& l, const DirectPlan& p, int element, bool tensor_cores)
      : samples(p.samples),
        rows(p.rows),
        columns(p.columns),
        band_rows(p.whole ? l.tap_rows : 1),
        plane_rows(std::min(band_rows, l.period_rows)),
        plane_columns(std::min(l.tap_columns, l.period_columns)),
        region_rows(rows + ceil_div(band_rows, l.period_rows) - 1),
        region_columns(columns + ceil_div(l.tap_columns, l.period_columns) - 1),
        run(p.joined ? clamp((int64_t{samples - 1} * region_rows + rows - 1) * region_columns + columns) : columns),
        run_segments(ceil_div(run, 16)),
        segments(run_segments * (p.joined ? 1 : samples * rows)),
        positions(0),
        chunk(kChunkBytes / element),
        pitch(tensor_cores ? chunk : chunk + 1),  // Plain products read a column of positions: banks apart.
        taps_at_once(static_cast<int>(std::min<int64_t>(kWeightBytes / (16 * result_blocks(l) * pitch * element),
                                                        int64_t{band_rows} * l.tap_columns))),
        weights(0),
        sums(0),
        bytes(0) {
    const int64_t held = int64_t{plane_rows} * plane_columns * samples * region_rows * region_columns + 15;
    const int64_t image = (held * pitch * element + 127) / 128 * 128;
    positions = clamp(held);
    weights = clamp(image);
    sums = weights + (taps_at_once * 16 * result_blocks(l) * pitch * element + 127) / 128 * 128;
    bytes = sums + kSumsBytes;
  }

 private:
  // What is more than any block has counts as 1 MiB, so that no sum overflows.
  static constexpr int clamp(int64_t value) { return static_cast<int>(std::min<int64_t>(value, 1 << 20)); }
};

constexpr int64_t direct_blocks(const Lattice& l, const DirectPlan& p) {
  return int64_t{ceil_div(l.batch, p.samples)} * ceil_div(l.rows, p.rows) * ceil_div(l.columns, p.columns) *
         ceil_div(l.results, 16 * result_blocks(l));
}

// The tile with which the blocks fetch and multiply the least together: a number fetched for a position costs about
// what 4 taps of its products do.
constexpr DirectPlan plan_direct(const Lattice& l, int element, bool tensor_cores) {
  DirectPlan best;
  int64_t least = INT64_MAX;
  const auto try_tile = [&](const DirectPlan& p, int limit) {
    const DirectLayout layout(l, p, element, tensor_cores);
    if (layout.segments > most_segments(l) || layout.bytes > limit) return false;
    const int64_t products =
        int64_t{ceil_div(layout.segments, kDirectWarps)} * kDirectWarps * 16 * l.tap_rows * l.tap_columns;
    const int64_t fetched = int64_t{4} * layout.positions * ceil_div(l.tap_rows, layout.band_rows);
    const int64_t time = direct_blocks(l, p) * (products + fetched);
    if (time < least) least = time, best = p;
    return true;
  };
  struct Budget {
    bool whole;
    int limit;
  };
  for (const auto& [whole, limit] : {Budget{true, kUsualBytes}, Budget{true, kMostBytes}, Budget{false, kMostBytes}}) {
    for (const bool joined : {false, true}) {
      for (int columns = 1; columns <= std::min(l.columns, 16 * most_segments(l)); ++columns) {
        for (int rows = 1; rows <= l.rows; ++rows)
          if (!try_tile({1, rows, columns, joined, whole}, limit)) break;
      }
      for (int samples = 2; samples <= l.batch; ++samples)
        if (!try_tile({samples, l.rows, l.columns, joined, whole}, limit)) break;
    }
    if (best.rows) break;
  }
  return best;
}

}  // namespace csc::cuda

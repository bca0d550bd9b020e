// How a block of the stem kernels lays out a tile in shared memory, and which tile it should take.
//
// A tile owns rows x columns of the code. A solve of n steps needs the code of its first step `halo` positions
// beyond that on every side, clipped to the code's own size. Offsets are in bytes.
//
//   codes      [rows][pitch][atom_pitch]: the atoms of a position adjacent, positions in lines of 16 for the products
//   images     [channels][image_rows][image_pitch], from a column that is a multiple of 8

#pragma once

#include <algorithm>
#include <cstdint>

#include "arguments.h"

namespace csc::cuda {

constexpr int kStemThreads = 256;
constexpr int kStemWarps = kStemThreads / 32;
constexpr int kTilePitch = 20;  // Of a 16 x 16 tile of sums.

constexpr int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// Bytes of a buffer, to the next multiple of 128. What is more than any block has counts as 1 MiB, so that no sum of
// buffers overflows.
constexpr int buffer_bytes(int64_t bytes) {
  return static_cast<int>(std::min<int64_t>((bytes + 127) / 128 * 128, int64_t{1} << 20));
}

struct StemLayout {
  int atoms16, atom_pitch;        // Atoms padded for the products; 8 more keep banks apart.
  int taps, taps16, tap_pitch;    // M kH kW
  int row_taps, row_taps16;       // M kW
  int reach_rows, reach_columns;  // Code positions that a step reaches beyond its own.
  int rows, columns, pitch;       // Of the region with its halo.
  int image_rows, image_pitch, image_size;
  int code_bytes, image_bytes, sums_bytes, scratch_bytes;
  int analysis_atoms, synthesis_atoms, tap_offsets, scratch, sums, images, codes, bytes;

  // `halo` in steps; `element`: bytes.
  constexpr StemLayout(const Shape& s, int tile_rows, int tile_columns, int halo, int images_kept, int codes_kept,
                       bool sums_kept, int totals_kept, int element)
      : atoms16(round_up(s.atoms, 16)),
        atom_pitch(atoms16 + 8),
        taps(s.channels * s.kernel_height * s.kernel_width),
        taps16(round_up(taps, 16)),
        tap_pitch(taps16 + 8),
        row_taps(s.channels * s.kernel_width),
        row_taps16(round_up(row_taps, 16)),
        reach_rows((s.kernel_height - 1) / s.stride_height),
        reach_columns((s.kernel_width - 1) / s.stride_width),
        rows(std::min<int64_t>(s.code_height, tile_rows + 2LL * halo * reach_rows)),
        columns(std::min<int64_t>(s.code_width, tile_columns + 2LL * halo * reach_columns)),
        pitch(round_up(columns, 16)),
        image_rows((rows - 1) * s.stride_height + s.kernel_height),
        image_pitch(round_up((columns - 1) * s.stride_width + s.kernel_width + 7, 8)),
        image_size(static_cast<int>(std::min<int64_t>(int64_t{1} * s.channels * image_rows * image_pitch, 1 << 20))),
        code_bytes(0),
        image_bytes(0),
        sums_bytes(0),
        scratch_bytes(0),
        analysis_atoms(0),
        synthesis_atoms(0),
        tap_offsets(0),
        scratch(0),
        sums(0),
        images(0),
        codes(0),
        bytes(0) {
    code_bytes = buffer_bytes(int64_t{1} * rows * pitch * atom_pitch * element);
    image_bytes = buffer_bytes(int64_t{1} * image_size * element);
    sums_bytes = sums_kept ? buffer_bytes(int64_t{4} * atoms16 * taps16) : 0;
    const int64_t unfolded = int64_t{16} * tap_pitch * element + 16 * kTilePitch * 4;
    const int64_t lines = int64_t{4} * row_taps16 * (pitch + 4);
    scratch_bytes = buffer_bytes(std::max(unfolded, lines));
    const auto take = [this](int count) {
      const int at = bytes;
      bytes += count;
      return at;
    };
    analysis_atoms = take(buffer_bytes(int64_t{1} * atoms16 * tap_pitch * element));
    synthesis_atoms = take(buffer_bytes(int64_t{1} * s.kernel_height * row_taps16 * atom_pitch * element));
    tap_offsets = take(buffer_bytes(int64_t{4} * taps16));
    scratch = take(kStemWarps * scratch_bytes);
    sums = take(sums_bytes);
    images = take(images_kept * image_bytes + totals_kept * buffer_bytes(int64_t{4} * image_size));
    codes = take(codes_kept * code_bytes);
  }
};

constexpr bool momentum_acts(const float* weights, int n_iter) {
  for (int k = 0; k + 1 < n_iter; ++k)
    if (weights[k] != 0) return true;
  return false;
}

// A solve keeps two images of x, of this tile and the next, the residual, and the code; with momentum, two codes.
constexpr int forward_halo(int n_iter, bool from_code) { return from_code ? n_iter : n_iter - 1; }

constexpr StemLayout forward_layout(const Shape& s, int rows, int columns, int n_iter, bool from_code, bool momentum,
                                    int element) {
  return StemLayout(s, rows, columns, forward_halo(n_iter, from_code), 3, momentum ? 2 : 1, false, 0, element);
}

// G_k is needed k steps around the tile, and z_k, from which it follows, 2 (n - 1) - k.
constexpr int backward_halo(int n_iter, bool from_code) {
  return std::max(n_iter, 2 * (n_iter - 1) - (from_code ? 0 : 1));
}

// Its backward: x twice, the residual of each step, the gradient's image, its sum; the codes before each step and the
// gradient.
constexpr StemLayout backward_layout(const Shape& s, int rows, int columns, int n_iter, bool from_code, int element) {
  return StemLayout(s, rows, columns, backward_halo(n_iter, from_code), 3 + n_iter, n_iter + (from_code ? 1 : 0), true,
                    1, element);
}

constexpr int64_t tiles_of(const Shape& s, int rows, int columns) {
  return static_cast<int64_t>((s.code_height + rows - 1) / rows) * ((s.code_width + columns - 1) / columns);
}

struct StemPlan {
  int rows = 0, columns = 0, blocks = 0, bytes = 0;  // No rows: nothing fits.
};

// The tile that takes the least time: whole waves of blocks, each as long as its region is large.
template <typename LayoutOf>
StemPlan plan_stem(const Shape& s, int shared_limit, int processors, const LayoutOf& layout_of) {
  StemPlan best;
  int64_t least = INT64_MAX;
  for (int columns = 1; columns <= s.code_width; ++columns) {
    const bool whole = columns == s.code_width;
    // Else only regions of whole lines of 16.
    if (!whole && layout_of(1, columns).columns % 16) continue;
    if (columns > 256 && !whole) break;
    for (int rows = 1; rows <= std::min(s.code_height, 256); ++rows) {
      const StemLayout l = layout_of(rows, columns);
      if (l.bytes > shared_limit) break;
      const int64_t tiles = tiles_of(s, rows, columns) * s.batch;
      const int64_t waves = (tiles + processors - 1) / processors;
      const int64_t time = waves * l.rows * l.pitch;
      if (time >= least) continue;
      least = time;
      best = {rows, columns, static_cast<int>(std::min<int64_t>(tiles, processors)), l.bytes};
    }
  }
  return best;
}

}  // namespace csc::cuda

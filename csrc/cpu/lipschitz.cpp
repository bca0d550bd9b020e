// What csc.lipschitz's certified bound is made from: csc_native::scaled_taps, the taps B_q of a dictionary's polyphase
// matrix, and csc_native::largest_moment, the largest trace(C(w)^32) of its symbol over a grid of frequencies w.
//
// C(w) = B(w)^H B(w) = sum over lags of exp(i w.lag) L_lag, an n x n matrix, where L are the autocorrelations of the
// taps B_q, depth x n each. It is equal to its conjugate transpose, so that the entries above the diagonal are enough,
// and for real taps C(-w) is its conjugate: half of the grid's columns have all moments.

#include <cmath>
#include <limits>

#include "isa.h"
#include "tensors.h"

namespace csc {
namespace {

constexpr double kTurn = 6.283185307179586;

// cos and sin of the angles between a point of the grid and the lags 1 - taps to taps - 1, the sizes of each apart.
void write_waves(int point, int points, int taps, int step, double* to) {
  for (int lag = 1 - taps; lag < taps; ++lag, to += 2 * step) {
    const double angle = kTurn * (int64_t{point} * lag % points) / points;
    to[0] = std::cos(angle);
    to[step] = std::sin(angle);
  }
}

// [lag of rows][lag of columns][pairs], see SymbolColumn.
std::vector<double> autocorrelations(const double* taps, int depth, int rows, int columns, int n, int pairs,
                                     const Kernels& kernels) {
  const int width = rows * columns * n, padded = round_up(width, 8);
  const Floats storage(int64_t{2} * padded * (depth + padded));
  double *wide = reinterpret_cast<double*>(storage.get()), *products = wide + int64_t{padded} * depth;
  for (int k = 0; k < depth; ++k) std::copy_n(taps + int64_t{k} * width, width, wide + int64_t{k} * padded);
  kernels.gram(wide, depth, padded, products);

  std::vector<double> lags(int64_t{2 * rows - 1} * (2 * columns - 1) * pairs);
  for (int q = 0; q < rows * columns; ++q) {
    for (int p = 0; p < rows * columns; ++p) {
      const int down = q / columns - p / columns + rows - 1, across = q % columns - p % columns + columns - 1;
      double* to = lags.data() + (int64_t{down} * (2 * columns - 1) + across) * pairs;
      for (int a = 0; a < n; ++a) {
        for (int b = a; b < n; ++b) {
          const int64_t i = q * n + a, j = p * n + b;
          *to++ += i <= j ? products[i * padded + j] : products[j * padded + i];
        }
      }
    }
  }
  return lags;
}

// dictionary: (K, M, kH, kW) float64, contiguous; taps: float64, (K, rows, columns, M sh sw), or with the first and
// last dimension exchanged where that makes the last one smaller. parts: {no eigenvalue of the taps' is larger, the
// largest number of the dictionary}; the taps are divided by this one and, where it is above 1, by the other's root.
void scaled_taps(Tensor dictionary, std::vector<int64_t> stride, Tensor taps, Tensor parts) {
  const int64_t atoms = dictionary.size(0), channels = dictionary.size(1), height = dictionary.size(2),
                width = dictionary.size(3), rows = taps.size(1), columns = taps.size(2), last = taps.size(3);
  const double* from = static_cast<const double*>(dictionary.data_ptr());
  double scale = 0, squares = 0;
  for (int64_t i = 0; i < dictionary.numel(); ++i) scale = std::max(scale, std::abs(from[i]));
  const double least = std::numeric_limits<double>::min(), divisor = scale < least ? least : scale;
  for (int64_t i = 0; i < dictionary.numel(); ++i) squares += (from[i] / divisor) * (from[i] / divisor);
  const double largest = squares * rows * columns, root = largest < 1 ? 1 : std::sqrt(largest);

  const bool exchanged = channels * stride[0] * stride[1] > atoms;
  double* to = static_cast<double*>(taps.data_ptr());
  std::fill_n(to, taps.numel(), 0.0);
  for (int64_t k = 0; k < atoms; ++k) {
    for (int64_t m = 0; m < channels; ++m) {
      for (int64_t i = 0; i < height; ++i) {
        for (int64_t j = 0; j < width; ++j) {
          const int64_t phase = (m * stride[0] + i % stride[0]) * stride[1] + j % stride[1];
          const int64_t tap = i / stride[0] * columns + j / stride[1];
          const int64_t outer = exchanged ? phase : k, inner = exchanged ? k : phase;
          to[(outer * rows * columns + tap) * last + inner] = *from++ / divisor / root;
        }
      }
    }
  }
  double* const found = static_cast<double*>(parts.data_ptr());
  found[0] = largest;
  found[1] = scale;
}

// taps: (depth, rows, columns, n) float64, contiguous, none of whose C(w) has an eigenvalue above 1; moment: float64.
void largest_moment(Tensor taps, std::vector<int64_t> grid, Tensor moment) {
  const Kernels& kernels = chosen_kernels();
  const int depth = static_cast<int>(taps.size(0)), rows = static_cast<int>(taps.size(1)),
            columns = static_cast<int>(taps.size(2)), n = static_cast<int>(taps.size(3));
  const int lanes = kernels.lanes / 2, pairs = round_up(n * (n + 1) / 2, lanes);
  const int grid_rows = static_cast<int>(grid[0]), grid_columns = static_cast<int>(grid[1]);
  const std::vector<double> lags =
      autocorrelations(static_cast<const double*>(taps.data_ptr()), depth, rows, columns, n, pairs, kernels);
  const int row_lags = 2 * rows - 1, column_lags = 2 * columns - 1, points = round_up(grid_rows, lanes);
  std::vector<double> row_waves(int64_t{2} * points * row_lags), column_waves(2 * column_lags);
  for (int point = 0; point < points; ++point)  // Those that fill the last vector are points of the grid again.
    write_waves(point % grid_rows, grid_rows, rows, lanes,
                row_waves.data() + point / lanes * int64_t{2} * lanes * row_lags + point % lanes);
  const Floats room(2 * (int64_t{2} * row_lags * pairs + int64_t{4} * n * n * lanes));

  SymbolColumn column{n, pairs, row_lags, column_lags, points};
  column.lags = lags.data();
  column.row_waves = row_waves.data();
  column.column_waves = column_waves.data();
  column.room = reinterpret_cast<double*>(room.get());
  double largest = 0;
  for (int point = 0; point <= grid_columns / 2; ++point) {
    write_waves(point, grid_columns, columns, 1, column_waves.data());
    largest = kernels.largest_moment(column, largest);
  }
  *static_cast<double*>(moment.data_ptr()) = largest;
}

}  // namespace
}  // namespace csc

STABLE_TORCH_LIBRARY_IMPL(csc_native, CPU, m) {
  m.impl("scaled_taps", TORCH_BOX(&csc::scaled_taps));
  m.impl("largest_moment", TORCH_BOX(&csc::largest_moment));
}

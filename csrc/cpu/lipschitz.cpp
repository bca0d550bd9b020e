// csc_native::lipschitz_bound, the certified bound of csc.lipschitz. It is made from the largest trace(C(w)^32) of a
// polyphase matrix's symbol over a grid of frequencies w.
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

// Parts of a grid, for threads; few, because each begins without a largest point that would spare it others.
constexpr int kParts = 4;

// The taps of a polyphase matrix, [depth][rows][columns][n].
struct Taps {
  const double* data;
  int depth, rows, columns, n;
};

// exp(i w lag) at the points of one axis of the grid, for the lags 1 - taps to taps - 1.
class Waves {
 public:
  Waves(int points, int taps) : points_(points), taps_(taps), turn_(2 * points) {
    for (int i = 0; i < points; ++i) {
      turn_[2 * i] = std::cos(kTurn * i / points);
      turn_[2 * i + 1] = std::sin(kTurn * i / points);
    }
  }

  // cos and sin at a point, `step` apart.
  void write(int point, int step, double* to) const {
    for (int lag = 1 - taps_; lag < taps_; ++lag, to += 2 * step) {
      int64_t i = int64_t{point} * lag % points_;
      if (i < 0) i += points_;
      to[0] = turn_[2 * i];
      to[step] = turn_[2 * i + 1];
    }
  }

 private:
  const int points_, taps_;
  std::vector<double> turn_;
};

// [lag of rows][lag of columns][pairs], see SymbolColumn.
std::vector<double> autocorrelations(const Taps& taps, int pairs, const Kernels& kernels) {
  const int depth = taps.depth, rows = taps.rows, columns = taps.columns, n = taps.n;
  const int width = rows * columns * n, padded = round_up(width, 8);
  const Floats storage(int64_t{2} * padded * (depth + padded));
  double *wide = reinterpret_cast<double*>(storage.get()), *products = wide + int64_t{padded} * depth;
  for (int k = 0; k < depth; ++k) std::copy_n(taps.data + int64_t{k} * width, width, wide + int64_t{k} * padded);
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

// No eigenvalue of the taps' C(w) may be above 1.
double moment_of(const Taps& taps, int grid_rows, int grid_columns) {
  const Kernels& kernels = chosen_kernels();
  const int n = taps.n, lanes = kernels.lanes / 2, pairs = round_up(n * (n + 1) / 2, lanes);
  const int row_lags = 2 * taps.rows - 1, column_lags = 2 * taps.columns - 1, points = round_up(grid_rows, lanes);
  const std::vector<double> lags = autocorrelations(taps, pairs, kernels);
  const Waves down(grid_rows, taps.rows), across(grid_columns, taps.columns);
  std::vector<double> row_waves(int64_t{2} * points * row_lags);
  for (int point = 0; point < points; ++point)  // Those that fill the last vector are points of the grid again.
    down.write(point % grid_rows, lanes,
               row_waves.data() + point / lanes * int64_t{2} * lanes * row_lags + point % lanes);

  const int grid_half = grid_columns / 2 + 1;
  const int64_t parts = std::min(kParts, grid_half);
  double moments[kParts] = {};
  parallel_tasks(parts, [&](int64_t part) {
    std::vector<double> column_waves(2 * column_lags);
    const Floats room(2 * (int64_t{2} * row_lags * pairs + int64_t{4} * n * n * lanes));
    SymbolColumn column{n, pairs, row_lags, column_lags, points};
    column.lags = lags.data();
    column.row_waves = row_waves.data();
    column.column_waves = column_waves.data();
    column.room = reinterpret_cast<double*>(room.get());
    double largest = 0;
    for (int64_t point = grid_half * part / parts; point < grid_half * (part + 1) / parts; ++point) {
      across.write(static_cast<int>(point), 1, column_waves.data());
      largest = kernels.largest_moment(column, largest);
    }
    moments[part] = largest;
  });
  return *std::max_element(moments, moments + kParts);
}

// dictionary: (K, M, kH, kW) float64, contiguous. The bound of ||A||^2 for any image, by a grid of `per_tap` points for
// each tap, above what is lost to rounding; 0 for zeros alone, else `tiny` at least. Strides are no longer than the
// kernel: the phases beyond it are zero. Where M sh sw is above K it is taken of B(w)^H.
double lipschitz_bound(Tensor dictionary, std::vector<int64_t> stride, int64_t per_tap, double rounding, double tiny) {
  const int atoms = static_cast<int>(dictionary.size(0)), channels = static_cast<int>(dictionary.size(1)),
            height = static_cast<int>(dictionary.size(2)), width = static_cast<int>(dictionary.size(3)),
            down = static_cast<int>(stride[0]), across = static_cast<int>(stride[1]);
  const int rows = ceil_div(height, down), columns = ceil_div(width, across), phases = channels * down * across;
  const double* from = static_cast<const double*>(dictionary.data_ptr());
  const int64_t count = dictionary.numel();

  // Divided by the largest number, and by what then no eigenvalue is above, the squares of all entries times the taps:
  // so that powers fit.
  double scale = 0, squares = 0;
  for (int64_t i = 0; i < count; ++i) scale = std::max(scale, std::abs(from[i]));
  const double least = std::numeric_limits<double>::min(), divisor = scale < least ? least : scale;
  std::vector<double> numbers(count);
  for (int64_t i = 0; i < count; ++i) {
    numbers[i] = from[i] / divisor;
    squares += numbers[i] * numbers[i];
  }
  const double largest = squares * rows * columns, factor = largest < 1 ? 1 : 1 / std::sqrt(largest);

  const bool exchanged = phases > atoms;
  const int depth = exchanged ? phases : atoms, n = exchanged ? atoms : phases;
  const int64_t of_atom = exchanged ? 1 : int64_t{rows} * columns * n;
  const int64_t of_phase = exchanged ? int64_t{rows} * columns * n : 1;
  std::vector<int64_t> places;  // Of the taps of one atom.
  for (int m = 0; m < channels; ++m)
    for (int i = 0; i < height; ++i)
      for (int j = 0; j < width; ++j)
        places.push_back(((m * down + i % down) * across + j % across) * of_phase +
                         int64_t{i / down * columns + j / across} * n);
  std::vector<double> taps(int64_t{depth} * rows * columns * n);
  const double* next = numbers.data();
  for (int k = 0; k < atoms; ++k)
    for (const int64_t place : places) taps[k * of_atom + place] = *next++ * factor;

  const auto points = [&](int length) { return length > 1 ? static_cast<int>(per_tap) * length : 1; };
  const double moment = moment_of({taps.data(), depth, rows, columns, n}, points(rows), points(columns));
  double bound = largest * std::pow(moment, 1 / 32.0);
  // What it can be between the points of one axis.
  for (const int length : {rows, columns}) bound /= std::cos(kTurn / 2 * (length - 1) / points(length));
  bound = bound * (1 + rounding) * scale * scale;
  return scale != 0 && bound < tiny ? tiny : bound;
}

}  // namespace
}  // namespace csc

STABLE_TORCH_LIBRARY_IMPL(csc_native, CPU, m) { m.impl("lipschitz_bound", TORCH_BOX(&csc::lipschitz_bound)); }

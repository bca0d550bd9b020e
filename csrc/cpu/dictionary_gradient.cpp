// The gradient of a dictionary from the sums that a correlation makes.

#include "filters.h"
#include "workspace.h"

namespace csc {
namespace {

// to[w][i] += weights[w] * from[i], for the three weights of a filter.
void add_filtered(const Filter& filter, const double* from, int count, double* to) {
  for (int w = 0; w < 3; ++w, to += count)
    if (filter.weights[w] != 0)
      for (int i = 0; i < count; ++i) to[i] += filter.weights[w] * from[i];
}

}  // namespace

std::vector<float> DictionaryPack::gradient_of_tiles(const double* sums) const {
  std::vector<float> gradient(plain_.size());
  float* to = gradient.data();
  for (int k = 0; k < atoms_; ++k) {
    for (int m = 0; m < channels_; ++m) {
      double taps[9] = {};
      for (int row = 0; row < 4; ++row) {
        const double* products = sums + (static_cast<int64_t>(row) * atoms_ + k) * 4 * channels_;
        double columns[3] = {};
        for (int i = 0; i < 4; ++i)
          add_filtered(kTileFilters[i], products + (i / 2 * channels_ + m) * 2 + i % 2, 1, columns);
        add_filtered(kTileFilters[row], columns, 3, taps);
      }
      for (const double tap : taps) *to++ = static_cast<float>(tap);
    }
  }
  return gradient;
}

std::vector<double> DictionaryPack::sums_of_columns(const double* sums) const {
  std::vector<double> taps(products_.size() * atoms_ * view_.row_taps);
  for (double* to = taps.data(); to < taps.data() + taps.size(); to += view_.row_taps) {
    each_column_product(channels_, [&](int m, const ColumnFilter& column) {
      // Of a channel the even taps lie before the odd ones.
      double* run = to + m * kernel_width_ + (column.first ? 4 : 0);
      for (int i = 0; i < column.filter.taps; ++i) run[i] += column.filter.weights[i] * *sums;
      ++sums;
    });
  }
  return taps;
}

std::vector<float> DictionaryPack::gradient(const double* sums) const {
  if (view_.tiles) return gradient_of_tiles(sums);
  std::vector<double> columns;
  if (view_.strided) {
    columns = sums_of_columns(sums);
    sums = columns.data();
  }
  std::vector<float> gradient(plain_.size());
  const int64_t per_atom = static_cast<int64_t>(channels_) * kernel_height_ * kernel_width_;
  for (const Product& product : products_) {
    for (int k = 0; k < atoms_; ++k) {
      for (int tap = 0; tap < view_.row_taps; ++tap, ++sums) {
        const int m = tap / kernel_width_, dx = columns_[tap % kernel_width_];
        float* column = gradient.data() + k * per_atom + static_cast<int64_t>(m) * kernel_height_ * kernel_width_ + dx;
        for (int i = 0; i < kMostTaps; ++i)
          if (product.weights[i] != 0)
            column[product.taps[i] * kernel_width_] += static_cast<float>(product.weights[i] * *sums);
      }
    }
  }
  return gradient;
}

}  // namespace csc

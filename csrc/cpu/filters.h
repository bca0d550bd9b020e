// Winograd's minimal filters of rows and of columns: what the products of pairs and tiles are made of.

#pragma once

#include <cstddef>

#include "blocks.h"

namespace csc {

// Minimal filtering of two neighbouring rows of codes with up to four taps below each other; see pairs.h.
enum Kind { steep, difference, sum, upper, lower, kKinds };

// One product: of a combination of rows of the image, those whose factor is not 0, and one of the taps.
struct Filter {
  int taps;
  Kind kind;
  float rows[kMostTaps + 1];
  double weights[kMostTaps];
};

inline constexpr Filter kFilters[] = {
    {1, upper, {1}, {1}},
    {1, lower, {0, 1}, {1}},
    {2, sum, {0, 1}, {1, 1}},
    {2, upper, {1, -1}, {1}},
    {2, lower, {0, -1, 1}, {0, 1}},
    {3, difference, {0, -1, 1}, {1 / 2.0, -1 / 2.0, 1 / 2.0}},
    {3, sum, {0, 1, 1}, {1 / 2.0, 1 / 2.0, 1 / 2.0}},
    {3, upper, {1, 0, -1}, {1}},
    {3, lower, {0, -1, 0, 1}, {0, 0, 1}},
    {4, steep, {0, -1, 0, 1}, {-1 / 6.0, 2 / 6.0, -4 / 6.0, 8 / 6.0}},
    {4, difference, {0, -2, 1, 1}, {1 / 2.0, -1 / 2.0, 1 / 2.0, -1 / 2.0}},
    {4, sum, {0, 2, 3, 1}, {1 / 6.0, 1 / 6.0, 1 / 6.0, 1 / 6.0}},
    {4, upper, {1, 0.5f, -1, -0.5f}, {1}},
    {4, lower, {0, -2, -1, 2, 1}, {0, 0, 0, 1}},
};

// Whether every product has room for its rows, and what is spread from so many taps to one row of the image never adds
// up to more than kHeadroom times the largest product.
constexpr bool leave_headroom() {
  for (const Filter& filter : kFilters) {
    int terms = 0;
    for (const float factor : filter.rows) terms += factor != 0;
    if (terms > kMostTaps) return false;
  }
  for (int taps = 1; taps <= kMostTaps; ++taps) {
    for (int row = 0; row <= kMostTaps; ++row) {
      float total = 0;
      for (const Filter& filter : kFilters)
        if (filter.taps == taps) total += filter.rows[row] < 0 ? -filter.rows[row] : filter.rows[row];
      if (total > kHeadroom) return false;
    }
  }
  return true;
}
static_assert(leave_headroom());

constexpr Filter filter_of(int taps, Kind kind) {
  const Filter* filter = kFilters;
  while (filter->taps != taps || filter->kind != kind) ++filter;
  return *filter;
}

// The products of tiles in either direction, in their order.
inline constexpr Filter kTileFilters[] = {filter_of(3, sum), filter_of(3, difference), filter_of(3, upper),
                                          filter_of(3, lower)};

// The products of the columns of strided tiles, in the order of strided_tiles.h.
struct ColumnFilter {
  Filter filter;
  int first;  // Kernel column of its first tap; the others lie two columns apart.
};

inline constexpr ColumnFilter kAnalysisColumns[] = {
    {filter_of(3, difference), 1}, {filter_of(2, sum), 0},   {filter_of(2, sum), 4},   {filter_of(3, sum), 1},
    {filter_of(2, upper), 0},      {filter_of(2, upper), 4}, {filter_of(3, upper), 1}, {filter_of(2, lower), 0},
    {filter_of(2, lower), 4},      {filter_of(3, lower), 1}};

inline constexpr ColumnFilter kCorrelationColumns[] = {
    {filter_of(4, steep), 0}, {filter_of(4, difference), 0}, {filter_of(3, difference), 1},
    {filter_of(4, sum), 0},   {filter_of(3, sum), 1},        {filter_of(4, upper), 0},
    {filter_of(3, upper), 1}, {filter_of(4, lower), 0},      {filter_of(3, lower), 1}};

// Calls with each product of the columns of one combined row in their order, kind by kind: channel and filter.
template <size_t Count, typename Visit>
void each_column_product(const ColumnFilter (&columns)[Count], int channels, const Visit& visit) {
  for (int kind = 0; kind < kKinds; ++kind)
    for (int m = 0; m < channels; ++m)
      for (const ColumnFilter& column : columns)
        if (column.filter.kind == kind) visit(m, column);
}

}  // namespace csc

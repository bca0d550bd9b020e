// Winograd's minimal filters of rows and of columns: what the products of pairs and tiles are made of.

#pragma once

#include <cstddef>

#include "blocks.h"

namespace csc {

// Minimal filtering of two neighbouring rows of codes with up to four taps below each other; see pairs.h.
enum Kind { steep, difference, sum, upper, lower, kKinds };

// One product: of a combination of rows of the image, those whose factor is not 0, and one of the taps. Part: of a
// difference, see pairs.h; 0 where there is none.
struct Filter {
  int taps;
  float part;
  Kind kind;
  float rows[kMostTaps + 1];
  double weights[kMostTaps];
};

inline constexpr Filter kFilters[] = {
    {1, 0, upper, {1}, {1}},
    {1, 0, lower, {0, 1}, {1}},
    {2, 0, sum, {0, 1}, {1, 1}},
    {2, 0, upper, {1, -1}, {1}},
    {2, 0, lower, {0, -1, 1}, {0, 1}},
    {3, 1, difference, {0, -1, 1}, {1 / 2.0, -1 / 2.0, 1 / 2.0}},
    {3, 1, sum, {0, 1, 1}, {1 / 2.0, 1 / 2.0, 1 / 2.0}},
    {3, 1, upper, {1, 0, -1}, {1}},
    {3, 1, lower, {0, -1, 0, 1}, {0, 0, 1}},
    {3, 0.5f, difference, {0, -1, 1}, {4 / 3.0, -2 / 3.0, 1 / 3.0}},
    {3, 0.5f, sum, {0, 1, 2}, {1 / 3.0, 1 / 3.0, 1 / 3.0}},
    {3, 0.5f, upper, {1, 1, -2}, {1}},
    {3, 0.5f, lower, {0, -0.5f, -0.5f, 1}, {0, 0, 1}},
    {4, 0.5f, steep, {0, -1, -1, 2}, {-1 / 18.0, 2 / 18.0, -4 / 18.0, 8 / 18.0}},
    {4, 0.5f, difference, {0, -2, 1, 1}, {8 / 9.0, -4 / 9.0, 2 / 9.0, -1 / 9.0}},
    {4, 0.5f, sum, {0, 1, 2.5f, 1}, {2 / 9.0, 2 / 9.0, 2 / 9.0, 2 / 9.0}},
    {4, 0.5f, upper, {1, 1.5f, -1.5f, -1}, {1}},
    {4, 0.5f, lower, {0, -1, -1.5f, 1.5f, 1}, {0, 0, 0, 1}},
};

// Whether pieces of so many taps take the filter where differences are of that part.
constexpr bool takes(const Filter& filter, int taps, float part) {
  return filter.taps == taps && (filter.part == 0 || filter.part == part);
}

// Whether every product has room for its rows, and neither what it combines nor what is spread from so many taps to one
// row of the image adds up to more than kHeadroom times the largest row or product.
constexpr bool leave_headroom() {
  for (const Filter& filter : kFilters) {
    int terms = 0;
    float total = 0;
    for (const float factor : filter.rows) {
      terms += factor != 0;
      total += factor < 0 ? -factor : factor;
    }
    if (terms > kMostTaps || total > kHeadroom) return false;
  }
  for (int taps = 1; taps <= kMostTaps; ++taps) {
    for (const float part : {0.5f, 1.0f}) {
      for (int row = 0; row <= kMostTaps; ++row) {
        float total = 0;
        for (const Filter& filter : kFilters)
          if (takes(filter, taps, part)) total += filter.rows[row] < 0 ? -filter.rows[row] : filter.rows[row];
        if (total > kHeadroom) return false;
      }
    }
  }
  return true;
}
static_assert(leave_headroom());

constexpr Filter filter_of(int taps, float part, Kind kind) {
  const Filter* filter = kFilters;
  while (!takes(*filter, taps, part) || filter->kind != kind) ++filter;
  return *filter;
}

// The products of tiles in either direction, in their order.
inline constexpr Filter kTileFilters[] = {filter_of(3, 1, sum), filter_of(3, 1, difference), filter_of(3, 1, upper),
                                          filter_of(3, 1, lower)};

// The products of the columns of strided tiles, in the order of strided_tiles.h.
struct ColumnFilter {
  Filter filter;
  int first;  // Kernel column of its first tap; the others lie two columns apart.
};

inline constexpr ColumnFilter kStridedColumns[] = {
    {filter_of(4, 0.5f, steep), 0}, {filter_of(4, 0.5f, difference), 0}, {filter_of(3, 0.5f, difference), 1},
    {filter_of(4, 0.5f, sum), 0},   {filter_of(3, 0.5f, sum), 1},        {filter_of(4, 0.5f, upper), 0},
    {filter_of(3, 0.5f, upper), 1}, {filter_of(4, 0.5f, lower), 0},      {filter_of(3, 0.5f, lower), 1}};

// Calls with each product of the columns of one combined row in their order, kind by kind: channel and filter.
template <typename Visit>
void each_column_product(int channels, const Visit& visit) {
  for (int kind = 0; kind < kKinds; ++kind)
    for (int m = 0; m < channels; ++m)
      for (const ColumnFilter& column : kStridedColumns)
        if (column.filter.kind == kind) visit(m, column);
}

}  // namespace csc

// A dictionary in the orders that the kernels read it in, and its gradient from the sums that they make.

#include <cmath>
#include <limits>

#include "workspace.h"

namespace csc {
namespace {

// Minimal filtering of two neighbouring rows of codes with up to four taps below each other; see pairs.h.
enum Kind { steep, difference, sum, upper, lower, kKinds };

// One product: of a combination of rows of the image, those whose factor is not 0, and one of the taps.
struct Filter {
  int taps;
  Kind kind;
  float rows[kMostTaps + 1];
  double weights[kMostTaps];
};

constexpr Filter kFilters[] = {
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
constexpr Filter kTileFilters[] = {filter_of(3, sum), filter_of(3, difference), filter_of(3, upper),
                                   filter_of(3, lower)};

// The products of the columns of strided tiles, in the order of strided_tiles.h.
struct ColumnFilter {
  Filter filter;
  int first;  // Kernel column of its first tap; the others lie two columns apart.

  bool is_shared() const { return filter.kind != upper && filter.kind != lower; }
};

constexpr ColumnFilter kAnalysisColumns[] = {
    {filter_of(2, sum), 0},   {filter_of(2, sum), 4},   {filter_of(3, sum), 1},   {filter_of(3, difference), 1},
    {filter_of(2, upper), 0}, {filter_of(2, upper), 4}, {filter_of(3, upper), 1}, {filter_of(2, lower), 0},
    {filter_of(2, lower), 4}, {filter_of(3, lower), 1}};

constexpr ColumnFilter kCorrelationColumns[] = {
    {filter_of(4, steep), 0}, {filter_of(4, difference), 0}, {filter_of(3, difference), 1},
    {filter_of(4, sum), 0},   {filter_of(3, sum), 1},        {filter_of(4, upper), 0},
    {filter_of(3, upper), 1}, {filter_of(4, lower), 0},      {filter_of(3, lower), 1}};

// Calls with each product of the columns of one combined row in their order: channel and filter.
template <size_t Count, typename Visit>
void each_column_product(const ColumnFilter (&columns)[Count], int channels, const Visit& visit) {
  for (const bool shared : {true, false})
    for (int m = 0; m < channels; ++m)
      for (const ColumnFilter& column : columns)
        if (column.is_shared() == shared) visit(m, column);
}

// to[w][i] += weights[w] * from[i], for the three weights of a filter.
void add_filtered(const Filter& filter, const double* from, int count, double* to) {
  for (int w = 0; w < 3; ++w, to += count)
    if (filter.weights[w] != 0)
      for (int i = 0; i < count; ++i) to[i] += filter.weights[w] * from[i];
}

}  // namespace

DictionaryPack::DictionaryPack(const Strided& atoms, int64_t atom_stride, float scale, const Shape& s,
                               const Widths& widths, const Kernels& kernels, bool pairs)
    : atoms_(s.atoms), channels_(s.channels), kernel_height_(s.kernel_height), kernel_width_(s.kernel_width) {
  plain_.reserve(static_cast<size_t>(s.atoms) * s.taps());
  for (int k = 0; k < s.atoms; ++k)
    for (int m = 0; m < s.channels; ++m)
      for (int dy = 0; dy < s.kernel_height; ++dy)
        for (int dx = 0; dx < s.kernel_width; ++dx)
          plain_.push_back(read(atoms, k * atom_stride + m * atoms.channel + dy * atoms.row + dx * atoms.column));

  for (int phase = 0; phase < s.stride_width; ++phase)
    for (int dx = phase; dx < s.kernel_width; dx += s.stride_width) columns_.push_back(dx);
  for (int m = 0; m < s.channels; ++m)
    for (const int dx : columns_)
      offsets_.push_back((m * s.stride_width + dx % s.stride_width) * widths.phase + dx / s.stride_width);

  // Analysis: per block of A atoms [kH][M kW][A]; blocks of the kernels' size, then of 4, 2, 1.
  analysis_.reserve(plain_.size());
  for (int atom = 0, block = kernels.atoms; atom < s.atoms; atom += block) {
    while (atom + block > s.atoms) block = block > 4 ? 4 : block / 2;
    for (int dy = 0; dy < s.kernel_height; ++dy)
      for (int m = 0; m < s.channels; ++m)
        for (const int dx : columns_)
          for (int a = 0; a < block; ++a) analysis_.push_back(scale * at(atom + a, m, dy, dx));
  }

  std::vector<Product> rows;
  for (int dy = 0; dy < s.kernel_height; ++dy) rows.push_back({{1, {dy}, {1}}, {dy}, {1}});
  for (const int below : {0, s.stride_height})
    for (int dy = 0; dy < s.kernel_height; ++dy) rows_.push_back({1, {below + dy}, {1}});
  pack_spread(s, rows, row_by_row_);
  SpreadTaps& row_by_row = view_.row_by_row;
  row_by_row.upper = row_by_row.lower = row_by_row.distinct = s.kernel_height;
  row_by_row.list = rows_.data();
  row_by_row.weights = row_by_row_.data();

  if (pairs && widths.suit_tiles) pack_tiles(scale, kernels.tile_atoms);
  if (pairs && !view_.tiles) pair_taps(s, scale, kernels);
  if (!products_.empty() && kernels.shifts && takes_strided_tiles(s)) pack_strided(scale, kernels.strided_atoms);
  if (products_.empty()) {
    products_ = rows;
    view_.spread = row_by_row;
  } else {
    pack_spread(s, products_, spread_);
    static_cast<PairedTaps&>(view_.spread) = view_.pairs;
    view_.spread.distinct = view_.pairs.rows();
    view_.spread.weights = spread_.data();
  }
  view_.row_taps = s.channels * s.kernel_width;
  view_.offsets = offsets_.data();
  view_.analysis = analysis_.data();
}

void DictionaryPack::pack_spread(const Shape& s, const std::vector<Product>& products, std::vector<float>& to) const {
  for (int phase = 0; phase < s.stride_width; ++phase)
    for (const Product& product : products)
      for (int k = 0; k < s.atoms; ++k)
        for (int c = 0; c < s.columns_of(phase); ++c)
          for (int m = 0; m < s.channels; ++m)
            to.push_back(static_cast<float>(-weight(product, k, m, phase + c * s.stride_width)));
}

double DictionaryPack::weight(const Product& product, int k, int m, int dx) const {
  double total = 0;
  for (int i = 0; i < kMostTaps; ++i)
    if (product.weights[i] != 0) total += product.weights[i] * at(k, m, product.taps[i], dx);
  return total;
}

void DictionaryPack::pair_taps(const Shape& s, float scale, const Kernels& kernels) {
  if (s.kernel_height <= s.stride_height) return;
  std::vector<Product> products[kKinds];
  for (int phase = 0; phase < s.stride_height; ++phase) {
    int tap = phase;
    for (int left = ceil_div(s.kernel_height - phase, s.stride_height); left > 0;) {
      const int taken = ceil_div(left, ceil_div(left, kernels.taps));
      for (const Filter& filter : kFilters) {
        if (filter.taps != taken) continue;
        Product product = {};
        for (int i = 0; i <= taken; ++i) {
          if (filter.rows[i] == 0) continue;
          product.row.rows[product.row.count] = tap + i * s.stride_height;
          product.row.factors[product.row.count++] = filter.rows[i];
        }
        for (int i = 0; i < taken; ++i) {
          product.taps[i] = tap + i * s.stride_height;
          product.weights[i] = filter.weights[i];
        }
        products[filter.kind].push_back(product);
      }
      left -= taken;
      tap += taken * s.stride_height;
    }
  }
  for (const auto& group : products) products_.insert(products_.end(), group.begin(), group.end());
  for (const Product& product : products_) pairs_.push_back(product.row);
  // No sum of an atom's products exceeds what they add up to without their signs, steep ones twice.
  std::vector<double> totals(s.atoms);
  for (int atom = 0, block = kernels.atoms; atom < s.atoms; atom += block) {
    while (atom + block > s.atoms) block = block > 4 ? 4 : block / 2;
    for (const Product& p : products_)
      for (int m = 0; m < s.channels; ++m)
        for (const int dx : columns_)
          for (int a = 0; a < block; ++a) {
            const double product = scale * weight(p, atom + a, m, dx);
            paired_.push_back(static_cast<float>(product));
            totals[atom + a] += 2 * std::abs(product);
          }
  }
  for (const float weight : paired_) {
    if (std::isfinite(weight)) continue;  // Nor is one of the dictionary, or a sum of it.
    products_.clear();
    return;
  }
  const double most = std::max<double>(kHeadroom, *std::max_element(totals.begin(), totals.end()));
  constexpr float kLargest = std::numeric_limits<float>::max();
  view_.pairs.headroom = most > kLargest ? std::numeric_limits<float>::infinity() : static_cast<float>(most);
  view_.pairs.steep = static_cast<int>(products[steep].size());
  view_.pairs.differences = static_cast<int>(products[difference].size());
  view_.pairs.sums = static_cast<int>(products[sum].size());
  view_.pairs.upper = static_cast<int>(products[upper].size());
  view_.pairs.lower = static_cast<int>(products[lower].size());
  view_.pairs.list = pairs_.data();
  view_.pairs.weights = paired_.data();
}

void DictionaryPack::pack_tiles(float scale, int block) {
  // Of each atom and channel 16 weights: [row kind][column kind].
  std::vector<double> weights(static_cast<size_t>(atoms_) * channels_ * 16);
  double* next = weights.data();
  for (int k = 0; k < atoms_; ++k) {
    for (int m = 0; m < channels_; ++m) {
      for (int row = 0; row < 4; ++row) {
        const double* rows = kTileFilters[row].weights;
        double combined[3];
        for (int dx = 0; dx < 3; ++dx)
          combined[dx] = rows[0] * at(k, m, 0, dx) + rows[1] * at(k, m, 1, dx) + rows[2] * at(k, m, 2, dx);
        for (int column = 0; column < 4; ++column) {
          const double* columns = kTileFilters[column].weights;
          *next++ = columns[0] * combined[0] + columns[1] * combined[1] + columns[2] * combined[2];
        }
      }
    }
  }
  // Calls visit with each product of some row kinds in their order: halves, channels, and the two of a half.
  const auto each_product = [&](int first, int last, const auto& visit) {
    for (int half = 2 * first; half < 2 * last; ++half)
      for (int m = 0; m < channels_; ++m)
        for (int product = 2 * half; product < 2 * half + 2; ++product) visit(m * 16 + product);
  };
  const int per_atom = channels_ * 16;
  tile_analysis_.reserve(weights.size());
  tile_spread_.reserve(weights.size());
  double most = kHeadroom;
  std::vector<double> totals(atoms_);
  for (int atom = 0; atom < atoms_; atom += block) {
    if (atom + block > atoms_) block = 1;
    each_product(0, 4, [&](int product) {
      for (int k = atom; k < atom + block; ++k) {
        const double weight = scale * weights[k * per_atom + product];
        tile_analysis_.push_back(static_cast<float>(weight));
        most = std::max(most, totals[k] += std::abs(weight));
      }
    });
  }
  for (int row = 0; row < 4; ++row)
    for (int k = 0; k < atoms_; ++k)
      each_product(row, row + 1,
                   [&](int product) { tile_spread_.push_back(static_cast<float>(-weights[k * per_atom + product])); });
  // The synthesis' weights are not finite where one of the dictionary or a sum of them is not, the analysis' with
  // scale.
  for (const auto& packed : {&tile_analysis_, &tile_spread_})
    for (const float weight : *packed)
      if (!std::isfinite(weight)) return;
  constexpr float kLargest = std::numeric_limits<float>::max();
  view_.tiles.headroom = most > kLargest ? std::numeric_limits<float>::infinity() : static_cast<float>(most);
  view_.tiles.analysis = tile_analysis_.data();
  view_.tiles.spread = tile_spread_.data();
}

void DictionaryPack::pack_strided(float scale, int block) {
  for (int atom = 0; atom < atoms_; atom += block) {
    while (atom + block > atoms_) block = block > 4 ? 4 : block / 2;
    for (const Product& row : products_) {
      each_column_product(kAnalysisColumns, channels_, [&](int m, const ColumnFilter& column) {
        for (int k = atom; k < atom + block; ++k) {
          double product = 0;
          for (int i = 0; i < column.filter.taps; ++i)
            if (column.filter.weights[i] != 0)
              product += column.filter.weights[i] * weight(row, k, m, column.first + 2 * i);
          strided_.push_back(static_cast<float>(scale * product));
        }
      });
    }
  }
  for (const float weight : strided_)
    if (!std::isfinite(weight)) return;
  // The headroom of pairs is enough: what is shared and what is apart of the columns of a row add up to no more than
  // the row's products without their signs, and a column is the difference of two at most.
  view_.strided = strided_.data();
}

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
    each_column_product(kCorrelationColumns, channels_, [&](int m, const ColumnFilter& column) {
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

// A dictionary in the orders that the kernels read it in.

#include <cmath>
#include <limits>

#include "filters.h"
#include "workspace.h"

namespace csc {
namespace {

// Atoms that an analysis computes together.
struct AtomBlock {
  int first, count;
};

// All atoms in blocks of `size`; of those that are left, in blocks of `rest` and then of half of that, and so on.
std::vector<AtomBlock> blocks_of(int atoms, int size, int rest) {
  std::vector<AtomBlock> blocks;
  for (int first = 0; first < atoms; first += size) {
    while (first + size > atoms) size = size > rest ? rest : size / 2;
    blocks.push_back({first, size});
  }
  return blocks;
}

// A limit that is as good as none where a float cannot hold it.
float headroom(double most) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  return most > kLargest ? std::numeric_limits<float>::infinity() : std::max(kHeadroom, static_cast<float>(most));
}

}  // namespace

// Weights of the analysis, block by block, of each block [products][atoms]; and what they add up to.
class DictionaryPack::Analysis {
 public:
  Analysis(std::vector<AtomBlock> blocks, int atoms, int64_t products, float scale)
      : blocks_(std::move(blocks)), products_(products), scale_(scale), row_(atoms), totals_(atoms) {
    weights_.resize(static_cast<size_t>(atoms) * products);
  }

  // The next product: scale times its weight in every atom.
  void add(const double* weights) {
    const int atoms = static_cast<int>(row_.size());
    for (int k = 0; k < atoms; ++k) {
      row_[k] = static_cast<float>(scale_ * weights[k]);
      totals_[k] += std::abs(row_[k]);
    }
    for (const AtomBlock& block : blocks_)
      std::copy_n(&row_[block.first], block.count, &weights_[block.first * products_ + next_ * block.count]);
    ++next_;
  }

  // The most that the weights of an atom add up to without their signs; not finite where one of them is not.
  double most() const {
    double most = 0;
    for (const double total : totals_) {
      if (!std::isfinite(total)) return total;
      most = std::max(most, total);
    }
    return most;
  }

  std::vector<float> take() { return std::move(weights_); }

 private:
  std::vector<AtomBlock> blocks_;
  const int64_t products_;
  int64_t next_ = 0;
  const double scale_;
  std::vector<float> row_, weights_;
  std::vector<double> totals_;
};

DictionaryPack::DictionaryPack(const Strided& atoms, int64_t atom_stride, float scale, const Shape& s,
                               const Widths& widths, const Kernels& kernels, bool pairs)
    : atoms_(s.atoms), channels_(s.channels), kernel_height_(s.kernel_height), kernel_width_(s.kernel_width) {
  plain_.resize(static_cast<size_t>(s.atoms) * s.taps());
  float* to = plain_.data();
  for (int dy = 0; dy < s.kernel_height; ++dy)
    for (int m = 0; m < s.channels; ++m)
      for (int dx = 0; dx < s.kernel_width; ++dx)
        for (int k = 0; k < s.atoms; ++k)
          *to++ = read(atoms, k * atom_stride + m * atoms.channel + dy * atoms.row + dx * atoms.column);

  for (int phase = 0; phase < s.stride_width; ++phase)
    for (int dx = phase; dx < s.kernel_width; dx += s.stride_width) columns_.push_back(dx);
  for (int m = 0; m < s.channels; ++m)
    for (const int dx : columns_)
      offsets_.push_back((m * s.stride_width + dx % s.stride_width) * widths.phase + dx / s.stride_width);

  std::vector<Product> rows;
  for (int dy = 0; dy < s.kernel_height; ++dy) rows.push_back({{1, {dy}, {1}}, {dy}, {1}});
  for (const int below : {0, s.stride_height})
    for (int dy = 0; dy < s.kernel_height; ++dy) rows_.push_back({1, {below + dy}, {1}});
  pack_rows(s, scale, rows, kernels, analysis_, row_by_row_);
  SpreadTaps& row_by_row = view_.row_by_row;
  row_by_row.upper = row_by_row.lower = row_by_row.distinct = s.kernel_height;
  row_by_row.list = rows_.data();
  row_by_row.weights = row_by_row_.data();

  if (pairs && widths.suit_tiles) pack_tiles(scale, kernels);
  if (pairs && !view_.tiles) pack_pairs(s, scale, kernels);
  if (!products_.empty() && takes_strided_tiles(s, kernels.lanes)) pack_strided(scale, kernels);
  if (products_.empty()) {
    products_ = rows;
    view_.spread = row_by_row;
  } else {
    static_cast<PairedTaps&>(view_.spread) = view_.pairs;
    view_.spread.distinct = view_.pairs.rows();
    view_.spread.weights = spread_.data();
  }
  view_.row_taps = s.channels * s.kernel_width;
  view_.offsets = offsets_.data();
  view_.analysis = analysis_.data();
}

void DictionaryPack::combine_rows(const Product& product, std::vector<double>& combined) const {
  const size_t row = static_cast<size_t>(channels_) * kernel_width_ * atoms_;
  combined.assign(row, 0);
  for (int i = 0; i < kMostTaps; ++i) {
    if (product.weights[i] == 0) continue;
    const float* from = plain_.data() + product.taps[i] * row;
    for (size_t j = 0; j < row; ++j) combined[j] += product.weights[i] * from[j];
  }
}

void DictionaryPack::combine_columns(const double* combined, const Filter& filter, int first, int step,
                                     double* weights) const {
  std::fill_n(weights, atoms_, 0.0);
  for (int i = 0; i < filter.taps; ++i) {
    if (filter.weights[i] == 0) continue;
    const double* from = combined + static_cast<int64_t>(first + i * step) * atoms_;
    for (int k = 0; k < atoms_; ++k) weights[k] += filter.weights[i] * from[k];
  }
}

double DictionaryPack::pack_rows(const Shape& s, float scale, const std::vector<Product>& products,
                                 const Kernels& kernels, std::vector<float>& analysis,
                                 std::vector<float>& spread) const {
  const int count = static_cast<int>(products.size());
  Analysis packed(blocks_of(atoms_, kernels.atoms, 4), atoms_, int64_t{count} * channels_ * kernel_width_, scale);
  spread.resize(static_cast<size_t>(atoms_) * count * channels_ * kernel_width_);
  std::vector<double> combined;
  for (int product = 0; product < count; ++product) {
    combine_rows(products[product], combined);
    for (int m = 0; m < channels_; ++m)
      for (const int dx : columns_) packed.add(&combined[int64_t{m * kernel_width_ + dx} * atoms_]);
    float* to = spread.data();
    for (int phase = 0; phase < s.stride_width; ++phase) {
      const int columns = s.columns_of(phase);
      float* from_here = to + int64_t{product} * atoms_ * columns * channels_;
      for (int c = 0; c < columns; ++c)
        for (int m = 0; m < channels_; ++m) {
          const double* weights = &combined[int64_t{m * kernel_width_ + phase + c * s.stride_width} * atoms_];
          for (int k = 0; k < atoms_; ++k)
            from_here[(k * columns + c) * channels_ + m] = static_cast<float>(-weights[k]);
        }
      to += int64_t{count} * atoms_ * columns * channels_;
    }
  }
  analysis = packed.take();
  return packed.most();
}

void DictionaryPack::pack_pairs(const Shape& s, float scale, const Kernels& kernels) {
  if (s.kernel_height <= s.stride_height) return;
  // Where a synthesis sums all kernel columns at once, factors of four taps would add too much rounding.
  const int most_taps = keeps_columns(s) ? kMostTaps : 3;
  std::vector<std::pair<int, int>> pieces;  // The first tap and how many, of each.
  float part = 1;
  for (int phase = 0; phase < s.stride_height; ++phase) {
    int tap = phase;
    for (int left = ceil_div(s.kernel_height - phase, s.stride_height); left > 0;) {
      const int taken = ceil_div(left, ceil_div(left, most_taps));
      pieces.push_back({tap, taken});
      if (taken == kMostTaps) part = 0.5f;
      left -= taken;
      tap += taken * s.stride_height;
    }
  }
  std::vector<Product> products[kKinds];
  for (const auto& [tap, taken] : pieces) {
    for (const Filter& filter : kFilters) {
      if (!takes(filter, taken, part)) continue;
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
  }
  for (const auto& group : products) products_.insert(products_.end(), group.begin(), group.end());
  for (const Product& product : products_) pairs_.push_back(product.row);
  const double most = pack_rows(s, scale, products_, kernels, paired_, spread_);
  if (!std::isfinite(most)) {  // Nor is a number of the dictionary, or a sum of them.
    products_.clear();
    return;
  }
  // No sum of an atom's products exceeds what they add up to without their signs, steep ones twice.
  view_.pairs.headroom = headroom(2 * most);
  view_.pairs.part = part;
  view_.pairs.steep = static_cast<int>(products[steep].size());
  view_.pairs.differences = static_cast<int>(products[difference].size());
  view_.pairs.sums = static_cast<int>(products[sum].size());
  view_.pairs.upper = static_cast<int>(products[upper].size());
  view_.pairs.lower = static_cast<int>(products[lower].size());
  view_.pairs.list = pairs_.data();
  view_.pairs.weights = paired_.data();
}

void DictionaryPack::pack_tiles(float scale, const Kernels& kernels) {
  // Of a row kind two halves, of each all channels, of each two column kinds.
  const int per_row = 4 * channels_;
  Analysis packed(blocks_of(atoms_, kernels.tile_atoms, 1), atoms_, 4 * per_row, scale);
  tile_spread_.resize(static_cast<size_t>(atoms_) * 4 * per_row);
  std::vector<double> combined, weights(atoms_);
  for (int row = 0; row < 4; ++row) {
    const double* factors = kTileFilters[row].weights;
    combine_rows({{}, {0, 1, 2}, {factors[0], factors[1], factors[2]}}, combined);
    for (int product = 0; product < per_row; ++product) {
      const int half = product / (2 * channels_), m = product / 2 % channels_;
      combine_columns(&combined[m * 3 * atoms_], kTileFilters[2 * half + product % 2], 0, 1, weights.data());
      float* to = &tile_spread_[static_cast<size_t>(row) * atoms_ * per_row + product];
      for (int k = 0; k < atoms_; ++k) to[k * per_row] = static_cast<float>(-weights[k]);
      if (row < 2)  // Sums and differences of rows: see tile_analysis.h.
        for (double& weight : weights) weight /= 2;
      packed.add(weights.data());
    }
  }
  const double most = packed.most();
  if (!std::isfinite(most)) return;  // Those of the synthesis may overflow: it finds that in what they make.
  tile_analysis_ = packed.take();
  view_.tiles.headroom = headroom(2 * most);  // Halves of weights that are made whole.
  view_.tiles.analysis = tile_analysis_.data();
  view_.tiles.spread = tile_spread_.data();
}

void DictionaryPack::pack_strided(float scale, const Kernels& kernels) {
  const int per_row = 9 * channels_;
  Analysis packed(blocks_of(atoms_, kernels.strided_atoms, 4), atoms_, per_row * view_.pairs.rows(), scale);
  std::vector<double> combined, weights(atoms_);
  for (const Product& row : products_) {
    combine_rows(row, combined);
    each_column_product(channels_, [&](int m, const ColumnFilter& column) {
      combine_columns(&combined[m * kernel_width_ * atoms_], column.filter, column.first, 2, weights.data());
      packed.add(weights.data());
    });
  }
  // What columns combine to is at most kHeadroom times as large, and steep products are doubled along rows and columns.
  // Where a weight is not finite, neither is that headroom, and every pair of rows is computed row by row.
  view_.pairs.headroom = std::max(view_.pairs.headroom, headroom(4 * kHeadroom * packed.most()));
  strided_ = packed.take();
  view_.strided = strided_.data();
}

}  // namespace csc

// Scratch memory of one task, and a dictionary packed for the kernels.

#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "blocks.h"

namespace csc {

// Zeroed floats, aligned to cache lines.
class Floats {
 public:
  Floats() = default;
  explicit Floats(int64_t count) { allocate(count); }

  void allocate(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(float) + 63) / 64 * 64 + 64;
    data_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    if (!data_) throw std::bad_alloc();
    std::memset(data_.get(), 0, bytes);
  }
  float* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* pointer) const { std::free(pointer); }
  };
  std::unique_ptr<float, Free> data_;
};

// Floats that are read and written as whole vectors of any instruction set.
constexpr int64_t whole_vectors(int64_t count) { return (count + 15) / 16 * 16; }

// Planes of scratch memory that live as long as their pool. Each starts as zeros; kernels write
// nothing but zeros to padding, so that it stays zero from image to image.
class Pool {
 public:
  Pool(const Shape& shape, const Widths& widths) : shape_(shape), widths_(widths) {}

  // Rows of codes: a ring of at least `rows`, or all of them.
  Plane codes(int rows) {
    return rows_of(shape_.atoms, widths_.code, widths_.code_margin, rows, shape_.code_height,
                   widths_.suit_tiles ? row_of_tiles() : 0);
  }

  // Phased rows of an image.
  Plane image(int rows) { return image(rows, shape_.height); }

  // Room for what so many pairs of code rows combine of the image; none where there are no pairs. A correlation of
  // strided tiles takes them in turns of its own.
  float* combined(const PackedDictionary& dictionary, int count, bool correlates = false) {
    if (!dictionary.combines()) return nullptr;
    // Of tiles 16 vectors for two of code columns.
    if (dictionary.tiles) return floats(int64_t{8} * count * shape_.channels * widths_.code);
    if (dictionary.strided && correlates) count = kStridedPairs;
    const int rows = count * dictionary.pairs.rows();
    if (!dictionary.strided) return image(rows, rows).base;
    const int64_t column = int64_t{9} * shape_.channels * dictionary.pairs.rows();
    return floats(rows * image_row() + 16 + (correlates ? kStridedRoom : 16) * column);
  }

  // Room for the products of a synthesis.
  Plane products(const PackedDictionary& dictionary, const Kernels& kernels) {
    const int columns = keeps_columns(shape_) ? shape_.columns_of(0) : 1;
    // Of tiles four rows, of each the columns beside the tile and below it.
    const int products = (dictionary.tiles ? 8 : dictionary.spread.rows() * columns) * shape_.channels;
    const int pairs = pairs_to_spread(shape_, kernels.lanes);
    return rows_of(products, widths_.product, widths_.margin, pairs, pairs);
  }

  float* floats(int64_t count) {
    storage_.emplace_back(count);
    return storage_.back().get();
  }

  // Zeros to stand for a row beyond an image or a code; column 0 of a code row has its margin before it.
  const float* zero_row() {
    const int64_t image = whole_vectors(static_cast<int64_t>(shape_.channels) * shape_.stride_width * widths_.phase);
    const int64_t code = static_cast<int64_t>(shape_.atoms) * widths_.code;
    return floats(std::max(image, code) + 2 * widths_.margin + 16) + widths_.margin;
  }

 private:
  Plane image(int rows, int all) { return rows_of(shape_.channels * shape_.stride_width, widths_.phase, 0, rows, all); }

  int64_t image_row() const { return row_of(shape_.channels * shape_.stride_width, widths_.phase); }

  // From row to row: an odd number of cache lines, so that the rows of a channel are spread over the sets.
  static int64_t row_of(int channels, int width) { return whole_vectors(static_cast<int64_t>(channels) * width) | 16; }

  // A correlation of tiles of three channels reads the rows of two atoms again and again (of fewer channels, those of
  // more atoms): each row begins as many lines behind the one before as two atoms take, modulo the 64 sets of a
  // first-level cache, so that they are spread over all sets.
  int64_t row_of_tiles() const {
    constexpr int64_t kSets = 64 * 16;
    const int64_t count = int64_t{1} * shape_.atoms * widths_.code;
    return (count + kSets - 1) / kSets * kSets + 2 * widths_.code;
  }

  // stride: from row to row; 0: row_of.
  Plane rows_of(int channels, int width, int margin, int rows, int all, int64_t stride = 0) {
    Plane plane;
    int slots = all;
    if (rows < all) {
      slots = 1;
      while (slots < rows) slots *= 2;
      plane.mask = slots - 1;
    }
    plane.channel_stride = width;
    plane.row_stride = stride ? stride : row_of(channels, width);
    // A correlation reads up to a vector beyond the last row.
    plane.base = floats(plane.row_stride * std::max(slots, 1) + 2 * margin + 16) + margin;
    return plane;
  }

  const Shape& shape_;
  const Widths& widths_;
  std::vector<Floats> storage_;
};

struct Filter;

// The dictionary (K, M, kH, kW), any strides, in the kernels' orders.
class DictionaryPack {
 public:
  // The analysis takes the atoms times `scale`, and computes code rows in pairs where that is wanted and saves
  // products.
  DictionaryPack(const Strided& atoms, int64_t atom_stride, float scale, const Shape& s, const Widths& widths,
                 const Kernels& kernels, bool pairs);

  const PackedDictionary& view() const { return view_; }

  // How many sums the correlation adds to, and the contiguous (K, M, kH, kW) gradient that they make.
  int64_t sums() const {
    if (view_.tiles) return int64_t{16} * atoms_ * channels_;
    const int per_row = view_.strided ? 9 * channels_ : view_.row_taps;
    return static_cast<int64_t>(atoms_) * products_.size() * per_row;
  }
  std::vector<float> gradient(const double* sums) const;

 private:
  class Analysis;

  // A combined row of the image, and the kernel rows of which its weights are a combination.
  struct Product {
    Combination row;
    int taps[kMostTaps];
    double weights[kMostTaps];
  };

  // The weights of a product in all kernel columns and atoms, [M][kW][K]; and of those of one channel a combination of
  // the columns `step` apart from the first, [K].
  void combine_rows(const Product& product, std::vector<double>& combined) const;
  void combine_columns(const double* combined, const Filter& filter, int first, int step, double* weights) const;

  // The weights of both directions where columns are taken one by one. Returns Analysis::most.
  double pack_rows(const Shape& s, float scale, const std::vector<Product>& products, const Kernels& kernels,
                   std::vector<float>& analysis, std::vector<float>& spread) const;

  // Those of pairs and of tiles, none where the analysis' are not all finite; and of strided tiles beside pairs.
  void pack_pairs(const Shape& s, float scale, const Kernels& kernels);
  void pack_tiles(float scale, const Kernels& kernels);
  void pack_strided(float scale, const Kernels& kernels);

  std::vector<float> gradient_of_tiles(const double* sums) const;

  // The sums of pairs from those of strided tiles.
  std::vector<double> sums_of_columns(const double* sums) const;

  int atoms_, channels_, kernel_height_, kernel_width_;
  std::vector<Product> products_;  // Of pairs; or each kernel row by itself.
  std::vector<float> plain_;       // [kH][M][kW][K]
  std::vector<float> analysis_, paired_, spread_, row_by_row_, tile_analysis_, tile_spread_, strided_;
  std::vector<Combination> pairs_, rows_;
  std::vector<int> columns_;  // Of a kernel row, phases outside.
  std::vector<int> offsets_;
  PackedDictionary view_;
};

// One number of a tensor.
inline float read(const Strided& from, int64_t offset) {
  if (from.element == Element::float32) return static_cast<const float*>(from.data)[offset];
  const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(from.data)[offset]) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// x, a mask or a gradient of an image to and from phased rows.
void read_image(const Strided& from, const Plane& to, const Shape& s, const Widths& widths);
void write_image(const Plane& from, float scale, const Strided& to, const Shape& s, const Widths& widths);

}  // namespace csc

// What the row kernels are given: plain structs of pointers, so that one definition serves every
// instruction set.

#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "geometry.h"

namespace csc {

// Kernel rows that the kernels have room for on their stacks.
constexpr int kMostKernelRows = 32;

// Taps below each other that a pair of code rows takes together, and so many rows of the image that a product combines.
constexpr int kMostTaps = 4;

// What is multiplied by this much and still finite can be summed.
constexpr float kHeadroom = 8;

// The sum of some rows of the image times their factors. Rows are counted from the first that a pair of code rows sees.
struct Combination {
  int count = 0;
  int rows[kMostTaps];
  float factors[kMostTaps];
};

// The products that a pair of code rows takes, in the order of their sums; see pairs.h. There are at least as many sums
// as differences, and as many upper as lower.
struct PairedTaps {
  int steep = 0, differences = 0, sums = 0, upper = 0, lower = 0;
  float part = 1;  // Differences are c0 - part c1.
  const Combination* list = nullptr;
  const float* weights = nullptr;  // Of the analysis, per block of A atoms: [rows()][row_taps][A].
  float headroom = kHeadroom;      // Of the combined rows: no less than any sum of products of them by an analysis.

  // The first of each kind.
  int difference() const { return steep; }
  int sum() const { return steep + differences; }
  int first() const { return sum() + sums; }
  int second() const { return first() + upper; }
  int rows() const { return second() + lower; }
};

// The same for the synthesis. weights: minus those of the atoms, [sW][distinct][K][columns_of(phase)][M], the same
// again for the products after the distinct ones.
struct SpreadTaps : PairedTaps {
  int distinct = 1;
  const float* phase_weights(const Shape& s, int phase) const {
    int64_t columns = 0;
    for (int before = 0; before < phase; ++before) columns += s.columns_of(before);
    return weights + distinct * s.atoms * s.channels * columns;
  }
};

// The weights of tiles, in the order of their products; see tiles.h.
struct TileWeights {
  const float* analysis = nullptr;  // Per block of A atoms: [4][2][M][2][A].
  const float* spread = nullptr;    // Minus those of the atoms: [4][K][2][M][2].
  float headroom = kHeadroom;       // Of what the image combines to: no less than any sum of products of it.
  explicit operator bool() const { return analysis; }
};

// Pairs of code rows whose combined rows an analysis holds at once, and a correlation at most.
constexpr int kPairsAtATime = 4, kPairsToCorrelate = 32;

// What a correlation of strided tiles has combined at once: the rows of so many pairs, and at most so many columns.
constexpr int kStridedPairs = 2, kStridedRoom = 256;

// Pairs of code rows that a synthesis spreads at once: enough of narrow ones to fill registers with a lone channel.
inline int pairs_to_spread(const Shape& s, int lanes) { return std::clamp(8 * lanes / s.code_width, 1, 4); }

// A dictionary in the orders that the kernels read it in.
struct PackedDictionary {
  int row_taps = 0;                 // M kW, the taps of one kernel row: channels outside, then phases.
  const int* offsets = nullptr;     // Of each tap of a row, from a code's column, in a phased image row.
  const float* analysis = nullptr;  // Per block of A atoms: [kH][row_taps][A].
  PairedTaps pairs;                 // Empty where pairs save nothing.
  TileWeights tiles;                // In place of pairs.
  const float* strided = nullptr;   // Of strided_tiles.h, beside pairs. Per block of A atoms: [pairs.rows()][9 M][A].
  SpreadTaps spread, row_by_row;    // Of pairs where they save products; each kernel row by itself.

  bool combines() const { return tiles || pairs.rows(); }
};

// Where strided tiles lie in the room for what is combined: behind the rows of so many pairs, and what is read beyond.
inline float* strided_room(const PackedDictionary& dictionary, float* combined, int pairs, int64_t row_stride) {
  return combined + pairs * dictionary.pairs.rows() * row_stride + 16;
}

enum class Shrink { none, positive, both };

// code = shrink(base + sum, threshold) / divisor;  point = code + beta (code - previous).
// The step size is in the sum: the dictionary was packed with it.
struct AnalysisEpilogue {
  Plane base;     // None: zero.
  Plane support;  // Of what is not shrunk: base + sum where this is not zero, else zero.
  Shrink shrink = Shrink::none;
  bool divide = false;
  const float* threshold = nullptr;  // [K], or maps where lmbda or mu vary over the code.
  const float* divisor = nullptr;
  Plane threshold_map, divisor_map;
  Plane code;           // As `point`, and the planes that are read: whole vectors, with zeros beyond the codes.
  bool stream = false;  // Write the code around the caches, its rows being aligned to vectors.
  float beta = 0;
  Plane previous, point;
};

// residual = mask * (image - sum), without an image mask * -sum;  total += residual.
struct SynthesisEpilogue {
  Plane image;
  Plane mask;
  Plane residual;
  Plane total;
};

struct AnalysisBlock {
  const Shape& shape;
  const PackedDictionary& dictionary;
  Plane image;         // Phased rows.
  const float* zeros;  // Stands for rows beyond the image.
  AnalysisEpilogue epilogue;
  float* combined = nullptr;  // Room for what pairs or tiles combine; none: row by row.
};

struct SynthesisBlock {
  const Shape& shape;
  const PackedDictionary& dictionary;
  Plane code;          // Whole vectors; with zero margins where codes are shifted, see Widths.
  const float* zeros;  // Stands for rows beyond the code, and for an image that is not given.
  SynthesisEpilogue epilogue;
  Plane products;  // Rows for those of the pairs at once, zero at the margins.
};

// How far a synthesis has come: the code rows that were added, and the image rows begun and finished.
struct SynthesisRows {
  int codes = 0, begun = 0, finished = 0;
};

struct CorrelationBlock {
  const Shape& shape;
  const PackedDictionary& dictionary;
  Plane image;
  Plane code;
  const float* zeros;  // Stands for rows beyond the image, and for a code row beyond the last.
  double* sums;        // Added to: [kernel rows, or combined rows of pairs][K][row_taps]; of tiles [4][K][4 M], strided
                       // [..][K][9 M].
  float* combined = nullptr;  // Room for what so many pairs combine; of strided tiles see strided_room.
  int room = 0;
};

// Sums over code rows of gradient * sign(code) and gradient * code: [K] each, added to.
struct PenaltySums {
  float* sign = nullptr;
  float* value = nullptr;
};

// gradient = source * (code != 0) / divisor, and the sums that lmbda and mu need. Source and code may be a
// tensor's own memory: nothing beyond their columns is read.
struct SupportBlock {
  const Shape& shape;
  Plane source, code, gradient;
  bool divide = false;
  const float* divisor = nullptr;
  Plane divisor_map;
  PenaltySums sums;
};

// One column of the grid of frequencies at which largest_moment looks; see lipschitz.cpp.
struct SymbolColumn {
  int n;                                 // Matrices are n x n.
  int pairs;                             // Entries of one on and above its diagonal, as whole vectors.
  int row_lags, column_lags;             // Of the autocorrelations.
  int points;                            // Of the column, as whole vectors.
  const double* lags = nullptr;          // [row_lags][column_lags][pairs]
  const double* row_waves = nullptr;     // Per vector of points: [row_lags][cosine, sine] vectors.
  const double* column_waves = nullptr;  // [column_lags][cosine, sine], of this column.
  double* room = nullptr;                // [2][row_lags][pairs] and two matrices of vectors.
};

enum class Element { float32, bfloat16 };

// One sample of a tensor, any strides.
struct Strided {
  void* data = nullptr;
  Element element = Element::float32;
  int64_t channel = 0, row = 0, column = 0;
  explicit operator bool() const { return data != nullptr; }
};

struct Winograd;

// One instruction set's kernels. Rows are half-open ranges.
struct Kernels {
  const char* name;
  int lanes;
  int atoms;                      // Of a register block, which the analysis' dictionary is packed for.
  int tile_atoms, strided_atoms;  // The same for tiles.
  void (*analysis)(const AnalysisBlock&, int begin, int end);
  void (*synthesis)(const SynthesisBlock&, SynthesisRows&, int end);
  void (*correlation)(const CorrelationBlock&, int begin, int end);
  void (*support)(const SupportBlock&, int begin, int end);
  void (*combine)(const Plane& to, float scale, const Plane& from, const Shape&, int begin, int end);
  void (*read_codes)(const Strided& from, const Strided& code, const Plane& to, const Shape&, int begin, int end);
  void (*copy_codes)(const Plane& from, const Plane& to, const Shape&, int begin, int end, bool around);
  void (*streamed)();  // After a thread's last write around the caches.
  void (*write_codes)(const Plane& from, const Strided& to, const Shape&, int begin, int end, bool around);
  void (*gram)(const double* rows, int depth, int width, double* to);
  double (*largest_moment)(const SymbolColumn&, double least);
  const Winograd* winograd;
};

}  // namespace csc

// The three row kernels of a stem (few input channels), for one instruction set.
//
//   analysis    code rows  = epilogue(sum over taps of D * image)     (K x M kH kW per position)
//   synthesis   image rows = epilogue(sum over taps of D * code)      (M x K kH kW per pixel)
//   correlation D-shaped   = sum over positions of image * code
//
// Vectors run along the width; a block of registers holds atoms (or channels, or taps) x vectors, so that
// every load feeds several multiply-adds. The order of the sums for one output never depends on how
// rows are grouped: the bits are the same for every number of threads.
//
// Included once per instruction set, inside its namespace: see isa.h.

// Registers: atoms x vectors for the analysis, sums of the synthesis, atoms x taps for the correlation (of a kernel row
// in one block, and of a longer one), atoms x two vectors for tiles, plus operands, for 32 (AVX-512) or 16 registers.
#if defined(CSC_ISA_AVX512)
constexpr int kAtoms = 6, kVectors = 4, kSpreadSums = 24;
constexpr int kRowAtoms = 3, kRowTaps = 9, kLongRowAtoms = 4, kLongRowTaps = 7;
constexpr int kTileAtoms = 4;
#elif defined(CSC_ISA_AVX2)
constexpr int kAtoms = 6, kVectors = 2, kSpreadSums = 12;
constexpr int kRowAtoms = 4, kRowTaps = 3, kLongRowAtoms = 4, kLongRowTaps = 3;
constexpr int kTileAtoms = 3;
#else
constexpr int kAtoms = 4, kVectors = 2, kSpreadSums = 12;
constexpr int kRowAtoms = 2, kRowTaps = 4, kLongRowAtoms = 2, kLongRowTaps = 4;
constexpr int kTileAtoms = 3;
#endif

// The largest of n, n/2, ... that a block of `left` things can use: 6 -> 4 -> 2 -> 1.
constexpr int smaller(int block) { return block > 4 ? 4 : block > 2 ? 2 : 1; }

#include "vector.h"

#include "analysis.h"
#include "elementwise.h"
#include "tiles.h"

#include "pairs.h"

#include "correlation.h"
#include "synthesis.h"

#include "strided_tiles.h"

#include "strided_analysis.h"
#include "strided_correlation.h"

#include "tile_analysis.h"
#include "tile_correlation.h"
#include "tile_synthesis.h"

#include "winograd_kernels.h"

#include "symbol.h"

static const Winograd kWinograd = {winograd_kernels<F2, float>(), winograd_kernels<F4, float>(),
                                   winograd_kernels<F2, double>(), winograd_kernels<F4, double>()};

static const Kernels kKernels = {CSC_ISA_NAME, kLanes,      kAtoms,  kTileAtoms,     kStridedAtoms, analysis,
                                 synthesis,    correlation, support, combine,        read_codes,    copy_codes,
                                 streamed,     write_codes, gram,    largest_moment, &kWinograd};

// One SIMD register of floats for the instruction set that this translation unit is compiled for.
//
// Included by kernels.h inside a namespace of its own per instruction set, after a
// `#pragma GCC target`. It uses the compilers' vector extensions (GCC, Clang) and no header: an
// inline function of the standard library compiled here could replace its baseline twin at link
// time and fault on an older processor.

#if defined(CSC_ISA_AVX512)
constexpr int kLanes = 16;
#elif defined(CSC_ISA_AVX2)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kRegisters = kLanes == 16 ? 32 : 16;

// Those of AVX-512 itself: tests/prove_avx512.py has vectors of 16 lanes without them.
#if defined(CSC_ISA_AVX512) && !defined(CSC_EMULATED_AVX512)
#define CSC_AVX512_INSTRUCTIONS
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef float UnalignedVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int IntVec __attribute__((vector_size(kLanes * 4)));

static inline Vec load(const float* from) { return *reinterpret_cast<const UnalignedVec*>(from); }

static inline void store(float* to, Vec value) { *reinterpret_cast<UnalignedVec*>(to) = value; }

static inline void prefetch(const float* from) { __builtin_prefetch(from); }

// A store that goes around the caches, to an address aligned to the vector: a large result that nobody reads back
// soon would first be read from memory to be overwritten. End with `streamed()`.
static inline void stream(float* to, Vec value) {
#if defined(CSC_AVX512_INSTRUCTIONS)
  __builtin_ia32_movntps512(to, value);
#elif defined(CSC_ISA_AVX2)
  __builtin_ia32_movntps256(to, value);
#elif defined(__SSE__) && !defined(CSC_ISA_AVX512)
  __builtin_ia32_movntps(to, value);
#else
  store(to, value);
#endif
}

static inline void streamed() {
#if defined(__SSE__)
  __builtin_ia32_sfence();
#endif
}

// Keeps a loaded vector in its register, where the compiler would rather load it again for every use: an
// unaligned load costs more than one.
static inline void hold(Vec& value) {
#if defined(CSC_AVX512_INSTRUCTIONS)
  asm("" : "+v"(value));
#elif defined(__x86_64__) && !defined(CSC_ISA_AVX512)
  asm("" : "+x"(value));
#endif
}

// The same for an address, where the compiler would rather keep one and how far the others lie from it.
template <typename T>
static inline void hold(T*& address) {
  asm("" : "+r"(address));
}

// With AVX-512 any unaligned vector crosses a cache line, which costs several loads: it is put together from two.
constexpr bool kShifts = kLanes == 16;

// The vector that lies `Lanes` floats behind `low`; next: the one that lies a whole vector behind.
template <int Lanes>
static inline Vec shift(const float* low, Vec next) {
#if defined(CSC_AVX512_INSTRUCTIONS)
  asm("valignd %3, %2, %1, %0" : "=v"(next) : "v"(next), "m"(*reinterpret_cast<const UnalignedVec*>(low)), "i"(Lanes));
  return next;
#else
  return load(low + Lanes);
#endif
}

// The same for at most three lanes, known where loops have been unrolled.
static inline __attribute__((always_inline)) Vec shifted(const float* low, Vec next, int lanes) {
  if (lanes == 1) return shift<1>(low, next);
  if (lanes == 2) return shift<2>(low, next);
  if (lanes == 3) return shift<3>(low, next);
  return load(low);
}

static inline Vec splat(float value) { return value - Vec{}; }

// The value where the code is not zero.
static inline Vec on_support(Vec value, Vec code) { return code != Vec{} ? value : Vec{}; }

// The columns from `column` on of a row, which may lie outside; zeros stand there, and memory there is not read.
static inline Vec load_within(const float* row, int column, int width) {
  const auto lane = [](int at) { return at < 0 ? 0 : at < kLanes ? at : kLanes; };
  const int begin = lane(-column), end = lane(width - column);
#if defined(CSC_AVX512_INSTRUCTIONS)
  const unsigned mask = ((1u << end) - 1) & ~((1u << begin) - 1);
  return __builtin_ia32_loadups512_mask(row + column, Vec{}, static_cast<unsigned short>(mask));
#elif defined(CSC_ISA_AVX2)
  const IntVec lanes = {0, 1, 2, 3, 4, 5, 6, 7};
  return __builtin_ia32_maskloadps256(reinterpret_cast<const Vec*>(row + column), (lanes >= begin) & (lanes < end));
#endif
  Vec value = {};
  for (int i = begin; i < end; ++i) value[i] = row[column + i];
  return value;
}

// The first `lanes` lanes; memory beyond them is neither read nor written.
static inline Vec load_partial(const float* from, int lanes) {
  return lanes == kLanes ? load(from) : load_within(from, 0, lanes);
}

static inline void store_partial(float* to, Vec value, int lanes) {
  if (lanes == kLanes) {
    store(to, value);
    return;
  }
#if defined(CSC_AVX512_INSTRUCTIONS)
  __builtin_ia32_storeups512_mask(to, value, static_cast<unsigned short>((1u << lanes) - 1));
#else
  for (int lane = 0; lane < lanes; ++lane) to[lane] = value[lane];
#endif
}

// The first `lanes` lanes, and zeros.
static inline Vec first_lanes(Vec value, int lanes) {
  static constexpr auto kOnes = [] {
    struct {
      float at[2 * kLanes];
    } ones = {};
    for (int lane = 0; lane < kLanes; ++lane) ones.at[lane] = 1;
    return ones;
  }();
  return on_support(value, load(kOnes.at + kLanes - lanes));
}

// max(value, 0) that keeps NaN. x86's max returns its second operand when either is NaN, but compilers take
// its builtins for commutative, and swap.
static inline Vec positive_part(Vec value) {
#if defined(CSC_AVX512_INSTRUCTIONS)
  asm("vmaxps %1, %2, %0" : "=v"(value) : "v"(value), "v"(Vec{}));
  return value;
#elif defined(CSC_ISA_AVX2)
  asm("vmaxps %1, %2, %0" : "=x"(value) : "x"(value), "x"(Vec{}));
  return value;
#else
  return value < Vec{} ? Vec{} : value;
#endif
}

// The bits of a bfloat16 as a float.
static inline float widen(unsigned short value) {
  const unsigned bits = static_cast<unsigned>(value) << 16;
  float result;
  __builtin_memcpy(&result, &bits, sizeof result);
  return result;
}

static inline float sum(Vec value) {
  float total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += value[lane];
  return total;
}

// Every second group of lanes of a, then of b, plus the others: within 128 bits, where shuffles are cheap, for single
// lanes.
template <int Group>
static inline __attribute__((always_inline)) Vec fold(Vec a, Vec b) {
  constexpr int kBlock = Group == 1 ? 4 : kLanes, kHalf = kBlock / 2;
  IntVec even, odd;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int at = lane % kBlock;
    even[lane] = lane - at + at % kHalf / Group * 2 * Group + at % Group + at / kHalf * kLanes;
    odd[lane] = even[lane] + Group;
  }
  return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, odd);
}

// The sum of each row's lanes, in the lane of its number: every round folds two rows into one.
template <int Rows, int Lanes = kLanes>
static inline __attribute__((always_inline)) Vec lane_sums(Vec* rows) {
  if constexpr (Lanes == 1) {
    return rows[0];
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; i += 2)
      rows[i / 2] = fold<(4 * Lanes > kLanes ? 1 : 4)>(rows[i], rows[i + 1 < Rows ? i + 1 : i]);
    return lane_sums<(Rows + 1) / 2, Lanes / 2>(rows);
  }
}

// Transposes a kLanes x kLanes block: log2(kLanes) rounds of perfect shuffles of rows i, i + half.
static inline void transpose(Vec (&rows)[kLanes]) {
  IntVec low, high;
  for (int lane = 0; lane < kLanes; ++lane) {
    low[lane] = lane / 2 + (lane % 2) * kLanes;
    high[lane] = low[lane] + kLanes / 2;
  }
  for (int round = 1; round < kLanes; round *= 2) {
    Vec shuffled[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / 2; ++i) {
      shuffled[2 * i] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], low);
      shuffled[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = shuffled[i];
  }
}

// Vectors of floats from and to bfloat16 in memory, and products of two pairs of it, by the processor's own
// instructions (AVX512_BF16). In assembly: compilers disagree about the types of their builtins.

typedef unsigned short HalfVec __attribute__((vector_size(kLanes * 2)));
typedef unsigned short UnalignedHalfVec __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));

static inline float widened(Bfloat16 value) { return widen(value.bits); }

static inline Vec load(const Bfloat16* from) {
  const HalfVec halves = *reinterpret_cast<const UnalignedHalfVec*>(from);
  return reinterpret_cast<Vec>(__builtin_convertvector(halves, IntVec) << 16);
}

// Round to nearest, ties to even; NaN stays NaN, and what is below the smallest normal number becomes zero.
static inline HalfVec rounded(Vec value) {
  HalfVec halves;
  asm("vcvtneps2bf16 %1, %0" : "=v"(halves) : "v"(value));
  return halves;
}

static inline void store(Bfloat16* to, Vec value) { *reinterpret_cast<UnalignedHalfVec*>(to) = rounded(value); }

// Half a cache line: nothing is won by sending it around the caches.
static inline void stream(Bfloat16* to, Vec value) { store(to, value); }

static inline Vec load_partial(const Bfloat16* from, int lanes) {
  if (lanes == kLanes) return load(from);
  Vec value = {};
  for (int lane = 0; lane < lanes; ++lane) value[lane] = widened(from[lane]);
  return value;
}

static inline void store_partial(Bfloat16* to, Vec value, int lanes) {
  if (lanes == kLanes) {
    store(to, value);
    return;
  }
  const HalfVec halves = rounded(value);
  for (int lane = 0; lane < lanes; ++lane) to[lane].bits = halves[lane];
}

template <>
constexpr int kTogether<Bfloat16> = 2;

static inline Vec splat_inputs(const Bfloat16* from) {
  int both;
  __builtin_memcpy(&both, from, sizeof both);
  return reinterpret_cast<Vec>(both - IntVec{});
}

static inline Vec load_weights(const Bfloat16* from) { return load(reinterpret_cast<const float*>(from)); }

static inline void store_weights(Bfloat16* to, const Vec (&weights)[2]) {
  const IntVec low = __builtin_convertvector(rounded(weights[0]), IntVec);
  const IntVec high = __builtin_convertvector(rounded(weights[1]), IntVec);
  store(reinterpret_cast<float*>(to), reinterpret_cast<Vec>(low | high << 16));
}

template <>
inline void multiply_add<Bfloat16>(Vec& sum, Vec inputs, Vec weights) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(inputs), "v"(weights));
}

// Vectors of either precision, so that the Winograd kernels are one source for both; see vector.h.

typedef double DoubleVec __attribute__((vector_size(kLanes * 4)));
typedef double UnalignedDoubleVec __attribute__((vector_size(kLanes * 4), aligned(8), may_alias));

template <typename Real>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef Vec type;
  static constexpr int lanes = kLanes;
};
template <>
struct VectorOf<double> {
  typedef DoubleVec type;
  static constexpr int lanes = kLanes / 2;
};

static inline DoubleVec load(const double* from) { return *reinterpret_cast<const UnalignedDoubleVec*>(from); }

static inline void store(double* to, DoubleVec value) { *reinterpret_cast<UnalignedDoubleVec*>(to) = value; }

// Doubles are for the tests, which have no large pictures.
static inline void stream(double* to, DoubleVec value) { store(to, value); }

static inline DoubleVec splat(double value) { return value - DoubleVec{}; }

static inline DoubleVec load_partial(const double* from, int lanes) {
  if (lanes == kLanes / 2) return load(from);
  DoubleVec value = {};
  for (int lane = 0; lane < lanes; ++lane) value[lane] = from[lane];
  return value;
}

static inline void store_partial(double* to, DoubleVec value, int lanes) {
  if (lanes == kLanes / 2) {
    store(to, value);
    return;
  }
  for (int lane = 0; lane < lanes; ++lane) to[lane] = value[lane];
}

static inline DoubleVec positive_part(DoubleVec value) { return value < DoubleVec{} ? DoubleVec{} : value; }

static inline void transpose(DoubleVec (&rows)[kLanes / 2]) {
  for (int i = 0; i < kLanes / 2; ++i) {
    for (int j = 0; j < i; ++j) {
      const double above = rows[j][i];
      rows[j][i] = rows[i][j];
      rows[i][j] = above;
    }
  }
}

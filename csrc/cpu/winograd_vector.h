// Vectors of every precision, so that the Winograd kernels are one source for all; see vector.h.

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

template <>
struct VectorOf<Bfloat16> : VectorOf<float> {};

static inline float widened(float value) { return value; }
static inline double widened(double value) { return value; }

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

// How many inputs one multiply-add takes: so many weights of an output lie side by side.
template <typename Stored>
constexpr int kTogether = 1;

template <typename Stored>
static inline typename VectorOf<Stored>::type splat_inputs(const Stored* from) {
  return splat(*from);
}

template <typename Stored>
static inline typename VectorOf<Stored>::type load_weights(const Stored* from) {
  return load(from);
}

template <typename Stored, typename V>
static inline void store_weights(Stored* to, const V (&weights)[1]) {
  store(to, weights[0]);
}

template <typename Stored, typename V>
static inline void multiply_add(V& sum, V inputs, V weights) {
  sum += inputs * weights;
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

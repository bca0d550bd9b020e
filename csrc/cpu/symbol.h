// The symbol of A'A at points of a grid, and traces of its powers; see lipschitz.cpp.
//
// Vectors run along the points of the first axis. A matrix is kept whole, [n][n][real, imaginary] vectors, so that the
// square of one, which is equal to its conjugate transpose, is made of products of its rows.

// to[i][j] = sum over k of rows[k][i] rows[k][j], for whole vectors.
static void gram(const double* rows, int depth, int width, double* to) {
  constexpr int kRows = 8, lanes = kLanes / 2;
  for (int i = 0; i < width; i += kRows) {
    for (int j = i / lanes * lanes; j < width; j += lanes) {
      DoubleVec sums[kRows] = {};
      const double* row = rows;
      for (int k = 0; k < depth; ++k, row += width) {
        const DoubleVec right = load(row + j);
#pragma GCC unroll 8
        for (int a = 0; a < kRows; ++a) sums[a] += row[i + a] * right;
      }
#pragma GCC unroll 8
      for (int a = 0; a < kRows; ++a) store(to + int64_t{i + a} * width + j, sums[a]);
    }
  }
}

// A vector of complex numbers.
struct Complex {
  DoubleVec real, imaginary;
};

// The squares of absolute values of all entries, given those of the diagonal and above it.
static inline DoubleVec squared(const Complex& value, bool diagonal) {
  const DoubleVec square = value.real * value.real + value.imaginary * value.imaginary;
  return diagonal ? square : square + square;
}

static inline void set(Complex* matrix, int n, int i, int j, const Complex& value) {
  matrix[i * n + j] = value;
  matrix[j * n + i] = {value.real, -value.imaginary};
}

// to = from * from; the sum of the squares of its entries.
static DoubleVec square(const Complex* from, int n, Complex* to) {
  DoubleVec total = {};
  for (int i = 0; i < n; ++i) {
    const Complex* const left = from + i * n;
    for (int j = i; j < n; j += 2) {
      // Two columns at once; beyond the last one that one again.
      const Complex* const right[2] = {from + j * n, from + (j + 1 < n ? j + 1 : j) * n};
      DoubleVec sums[2][4] = {};
      for (int k = 0; k < n; ++k) {
        const Complex a = left[k];
#pragma GCC unroll 2
        for (int column = 0; column < 2; ++column) {
          const Complex b = right[column][k];
          sums[column][0] += a.real * b.real;
          sums[column][1] += a.imaginary * b.imaginary;
          sums[column][2] += a.imaginary * b.real;
          sums[column][3] += a.real * b.imaginary;
        }
      }
      for (int column = 0; column < 2 && j + column < n; ++column) {
        const Complex value = {sums[column][0] + sums[column][1], sums[column][2] - sums[column][3]};
        set(to, n, i, j + column, value);
        total += squared(value, i == j + column);
      }
    }
  }
  return total;
}

// The largest trace(C^32) over the points of one column of the grid, or `least` where that is larger.
static double largest_moment(const SymbolColumn& b, double least) {
  constexpr int lanes = kLanes / 2, kSquarings = 4;
  const int64_t pairs = b.pairs, row = pairs * b.column_lags;
  // The lags of columns first, the same for all points.
  double *real = b.room, *imaginary = real + b.row_lags * pairs;
  for (int l = 0; l < b.row_lags; ++l) {
    for (int64_t p = 0; p < pairs; p += lanes) {
      Complex value = {};
      for (int c = 0; c < b.column_lags; ++c) {
        const DoubleVec lag = load(b.lags + l * row + c * pairs + p);
        value.real += b.column_waves[2 * c] * lag;
        value.imaginary += b.column_waves[2 * c + 1] * lag;
      }
      store(real + l * pairs + p, value.real);
      store(imaginary + l * pairs + p, value.imaginary);
    }
  }
  Complex* const matrices[2] = {reinterpret_cast<Complex*>(imaginary + b.row_lags * pairs),
                                reinterpret_cast<Complex*>(imaginary + b.row_lags * pairs) + b.n * b.n};
  for (int point = 0; point < b.points; point += lanes) {
    const double* const waves = b.row_waves + int64_t{2} * point * b.row_lags;
    DoubleVec moment = {};  // trace(C^2), then of C^4, ...
    int64_t pair = 0;
    for (int i = 0; i < b.n; ++i) {
      for (int j = i; j < b.n; ++j, ++pair) {
        Complex value = {};
        for (int l = 0; l < b.row_lags; ++l) {
          const DoubleVec cosine = load(waves + 2 * l * lanes), sine = load(waves + (2 * l + 1) * lanes);
          const double r = real[l * pairs + pair], m = imaginary[l * pairs + pair];
          value.real += r * cosine - m * sine;
          value.imaginary += r * sine + m * cosine;
        }
        set(matrices[0], b.n, i, j, value);
        moment += squared(value, i == j);
      }
    }
    for (int done = 0;; ++done) {
      // A moment's power is no less than the moments after it.
      DoubleVec most = moment;
      for (int left = done; left < kSquarings; ++left) most *= most;
      double largest = 0;
      for (int lane = 0; lane < lanes; ++lane) largest = most[lane] > largest ? most[lane] : largest;
      if (largest <= least) break;
      if (done == kSquarings) {
        least = largest;
        break;
      }
      moment = square(matrices[done % 2], b.n, matrices[1 - done % 2]);
    }
  }
  return least;
}

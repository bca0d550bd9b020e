// The matrices of Winograd's minimal filtering F(m x m, 3x3) for m = 2 and 4 (Winograd 1980; Lavin and Gray, CVPR
// 2016): m x m outputs of a 3x3 filter g on an (m + 2) x (m + 2) tile d of the input,
//
//   Y = T' [(G g G') * (B' d B)] T,
//
// and the gradient of <Y, E> in g, which is G' [(T E T') * (B' d B)] G. Each function is one matrix applied to a
// column of vectors. F2's entries are 0, 1 and 1/2, so that it loses no precision to speak of; F4's reach 8, and it
// loses a decimal digit.

template <typename Real>
struct F2 {
  typedef typename VectorOf<Real>::type V;
  static constexpr int kSide = 2, kPoints = 4;

  // B'
  static inline void input(const V (&d)[4], V (&v)[4]) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
  }
  // G
  static inline void weight(const V (&g)[3], V (&u)[4]) {
    const V ends = g[0] + g[2];
    u[0] = g[0];
    u[1] = (ends + g[1]) * Real(0.5);
    u[2] = (ends - g[1]) * Real(0.5);
    u[3] = g[2];
  }
  // T'
  static inline void output(const V (&m)[4], V (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
  // T
  static inline void gradient(const V (&e)[2], V (&m)[4]) {
    m[0] = e[0];
    m[1] = e[0] + e[1];
    m[2] = e[0] - e[1];
    m[3] = -e[1];
  }
  // G'
  static inline void weight_gradient(const V (&u)[4], V (&g)[3]) {
    const V sum = (u[1] + u[2]) * Real(0.5);
    g[0] = u[0] + sum;
    g[1] = (u[1] - u[2]) * Real(0.5);
    g[2] = sum + u[3];
  }
};

// The points 0, 1, -1, 2, -2 and infinity.
template <typename Real>
struct F4 {
  typedef typename VectorOf<Real>::type V;
  static constexpr int kSide = 4, kPoints = 6;

  static inline void input(const V (&d)[6], V (&v)[6]) {
    const V even = d[4] - d[2] * Real(4), odd = d[3] - d[1] * Real(4);
    const V far = d[4] - d[2], step = (d[3] - d[1]) * Real(2);
    v[0] = d[0] * Real(4) - d[2] * Real(5) + d[4];
    v[1] = even + odd;
    v[2] = even - odd;
    v[3] = far + step;
    v[4] = far - step;
    v[5] = d[1] * Real(4) - d[3] * Real(5) + d[5];
  }
  static inline void weight(const V (&g)[3], V (&u)[6]) {
    const V ends = (g[0] + g[2]) * (Real(-1) / 6), middle = g[1] * (Real(1) / 6);
    const V near = g[0] * (Real(1) / 24) + g[2] * (Real(1) / 6), half = g[1] * (Real(1) / 12);
    u[0] = g[0] * Real(0.25);
    u[1] = ends - middle;
    u[2] = ends + middle;
    u[3] = near + half;
    u[4] = near - half;
    u[5] = g[2];
  }
  static inline void output(const V (&m)[6], V (&y)[4]) {
    const V sum = m[1] + m[2], difference = m[1] - m[2], far = m[3] + m[4], apart = (m[3] - m[4]) * Real(2);
    y[0] = m[0] + sum + far;
    y[1] = difference + apart;
    y[2] = sum + far * Real(4);
    y[3] = difference + apart * Real(4) + m[5];
  }
  static inline void gradient(const V (&e)[4], V (&m)[6]) {
    const V even = e[0] + e[2], odd = e[1] + e[3];
    const V far = e[0] + e[2] * Real(4), apart = e[1] * Real(2) + e[3] * Real(8);
    m[0] = e[0];
    m[1] = even + odd;
    m[2] = even - odd;
    m[3] = far + apart;
    m[4] = far - apart;
    m[5] = e[3];
  }
  static inline void weight_gradient(const V (&u)[6], V (&g)[3]) {
    const V near = (u[1] + u[2]) * (Real(-1) / 6), far = u[3] + u[4];
    g[0] = u[0] * Real(0.25) + near + far * (Real(1) / 24);
    g[1] = (u[2] - u[1]) * (Real(1) / 6) + (u[3] - u[4]) * (Real(1) / 12);
    g[2] = near + far * (Real(1) / 6) + u[5];
  }
};

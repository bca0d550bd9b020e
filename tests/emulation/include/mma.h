// nvcuda::wmma as plain loops. A fragment's elements lie anyhow over the lanes: code may not know where.

#pragma once

#include "cuda_fp16.h"
#include "device.h"

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

namespace precision {
struct tf32 {};
}  // namespace precision

template <typename T>
struct storage {
  using type = T;
};
template <>
struct storage<precision::tf32> {
  using type = float;
};

inline float wide(float v) { return v; }
inline float wide(__half v) { return __half2float(v); }
inline float wide(__nv_bfloat16 v) { return __bfloat162float(v); }

inline float __float_to_tf32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7f800000u) != 0x7f800000u) bits = (bits + 0x0fffu + ((bits >> 13) & 1u)) & ~0x1fffu;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Rows x columns elements, dealt out to the lanes.
template <typename Use, int M, int N, int K, typename T, typename Order = void>
struct fragment {
  using Element = typename storage<T>::type;
  static constexpr int rows = std::is_same_v<Use, matrix_b> ? K : M;
  static constexpr int columns = std::is_same_v<Use, matrix_a> ? K : N;
  static constexpr int num_elements = rows * columns / 32;
  Element x[num_elements];

  // The place of element e of a lane: any permutation will do.
  static int place(int lane, int e) { return (e * 32 + (lane * 5 + 3) % 32) % (rows * columns); }
};

inline int lane() { return emulation::current().index % 32; }

template <typename T>
void check_tile(const T* pointer, unsigned leading) {
  if (reinterpret_cast<uintptr_t>(pointer) % 32) emulation::fail("a wmma tile that is not aligned to 32 bytes");
  if (leading * sizeof(T) % 16) emulation::fail("a wmma leading dimension that is not whole 16 bytes");
}

template <typename F, typename T>
void fill_fragment(F& f, T value) {
  for (auto& x : f.x) x = value;
}

template <typename Use, int M, int N, int K, typename T, typename Order>
void load_matrix_sync(fragment<Use, M, N, K, T, Order>& f, const typename storage<T>::type* from, unsigned leading) {
  using F = fragment<Use, M, N, K, T, Order>;
  check_tile(from, leading);
  for (int e = 0; e < f.num_elements; ++e) {
    const int at = F::place(lane(), e), row = at / F::columns, column = at % F::columns;
    const auto* p = from + (std::is_same_v<Order, row_major> ? row * leading + column : column * leading + row);
    emulation::shared_access(p, sizeof *p, false);
    f.x[e] = *p;
  }
}

template <int M, int N, int K>
void store_matrix_sync(float* to, const fragment<accumulator, M, N, K, float>& f, unsigned leading, layout_t layout) {
  using F = fragment<accumulator, M, N, K, float>;
  check_tile(to, leading);
  for (int e = 0; e < f.num_elements; ++e) {
    const int at = F::place(lane(), e), row = at / F::columns, column = at % F::columns;
    float* p = to + (layout == mem_row_major ? row * leading + column : column * leading + row);
    emulation::shared_access(p, sizeof *p, true);
    *p = f.x[e];
  }
}

template <int M, int N, int K, typename T, typename OrderA, typename OrderB>
void mma_sync(fragment<accumulator, M, N, K, float>& d, const fragment<matrix_a, M, N, K, T, OrderA>& a,
              const fragment<matrix_b, M, N, K, T, OrderB>& b, const fragment<accumulator, M, N, K, float>& c) {
  using A = fragment<matrix_a, M, N, K, T, OrderA>;
  using B = fragment<matrix_b, M, N, K, T, OrderB>;
  using D = fragment<accumulator, M, N, K, float>;
  // Lane 0's place holds the two matrices as floats: [M][K], then [K][N].
  auto* left = reinterpret_cast<float*>(emulation::warp_exchange(0));
  float* right = left + M * K;
  const auto tf32 = [](float v) {
    return std::is_same_v<T, precision::tf32> && v != __float_to_tf32(v) && v == v ? true : false;
  };
  for (int e = 0; e < a.num_elements; ++e) {
    const float v = wide(a.x[e]);
    if (tf32(v)) emulation::fail("a TF32 product of a number that was not rounded to TF32");
    left[A::place(lane(), e)] = v;
  }
  for (int e = 0; e < b.num_elements; ++e) {
    const float v = wide(b.x[e]);
    if (tf32(v)) emulation::fail("a TF32 product of a number that was not rounded to TF32");
    right[B::place(lane(), e)] = v;
  }
  emulation::warp_barrier({__FILE__, __LINE__}, false);
  for (int e = 0; e < d.num_elements; ++e) {
    const int at = D::place(lane(), e), row = at / N, column = at % N;
    float sum = c.x[e];
    for (int k = 0; k < K; ++k) sum += left[row * K + k] * right[k * N + column];
    d.x[e] = sum;
  }
  emulation::device.fused_products += M * N * K / 32;
}

}  // namespace nvcuda::wmma

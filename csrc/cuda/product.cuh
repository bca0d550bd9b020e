// Products of 16 x 16 tiles by one warp, from shared memory, summed in float32.
//
// multiply: sums += A B with A (16 x depth) stored by rows and B (depth x 16) by columns; multiply_outer: A by
// columns and B by rows. `depth` is a multiple of kDepth; on tensor cores leading dimensions are whole 16 bytes and
// tiles begin on 32, as wmma asks.

#pragma once

#include "memory.cuh"

namespace csc::cuda {

template <typename Fragment, typename Element>
__device__ inline void load_tile(Fragment& fragment, Shared<Element> from, int leading) {
  nvcuda::wmma::load_matrix_sync(fragment, from.get(), leading);
}

// Tensor cores in 16 bits.
template <typename Element_>
struct Wmma16 {
  using Element = Element_;
  static constexpr int kDepth = 16;  // Depths of a product are multiples of this.

  class Sums {
   public:
    __device__ void clear() { nvcuda::wmma::fill_fragment(sums_, 0.0f); }

    __device__ void multiply(Shared<Element> a, int lda, Shared<Element> b, int ldb, int depth) {
      nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, Element, nvcuda::wmma::row_major> left;
      nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, 16, 16, 16, Element, nvcuda::wmma::col_major> right;
      for (int d = 0; d < depth; d += 16) {
        load_tile(left, a + d, lda);
        load_tile(right, b + d, ldb);
        nvcuda::wmma::mma_sync(sums_, left, right, sums_);
      }
    }

    __device__ void multiply_outer(Shared<Element> a, int lda, Shared<Element> b, int ldb) {
      nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, Element, nvcuda::wmma::col_major> left;
      nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, 16, 16, 16, Element, nvcuda::wmma::row_major> right;
      load_tile(left, a, lda);
      load_tile(right, b, ldb);
      nvcuda::wmma::mma_sync(sums_, left, right, sums_);
    }

    __device__ void store(Shared<float> to, int leading) const {
      nvcuda::wmma::store_matrix_sync(to.get(), sums_, leading, nvcuda::wmma::mem_row_major);
    }

   private:
    nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sums_;
  };
};

// Tensor cores on float32 rounded to TF32.
struct WmmaTf32 {
  using Element = float;
  static constexpr int kDepth = 8;

  class Sums {
   public:
    __device__ void clear() { nvcuda::wmma::fill_fragment(sums_, 0.0f); }

    __device__ void multiply(Shared<float> a, int lda, Shared<float> b, int ldb, int depth) {
      for (int d = 0; d < depth; d += 8) step<nvcuda::wmma::row_major, nvcuda::wmma::col_major>(a + d, lda, b + d, ldb);
    }

    __device__ void multiply_outer(Shared<float> a, int lda, Shared<float> b, int ldb) {
      for (int d = 0; d < 16; d += 8)
        step<nvcuda::wmma::col_major, nvcuda::wmma::row_major>(a + d * lda, lda, b + d * ldb, ldb);
    }

    __device__ void store(Shared<float> to, int leading) const {
      nvcuda::wmma::store_matrix_sync(to.get(), sums_, leading, nvcuda::wmma::mem_row_major);
    }

   private:
    template <typename OrderA, typename OrderB>
    __device__ void step(Shared<float> a, int lda, Shared<float> b, int ldb) {
      nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 8, nvcuda::wmma::precision::tf32, OrderA> left;
      nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, 16, 16, 8, nvcuda::wmma::precision::tf32, OrderB> right;
      load_tile(left, a, lda);
      load_tile(right, b, ldb);
      for (int i = 0; i < left.num_elements; ++i) left.x[i] = nvcuda::wmma::__float_to_tf32(left.x[i]);
      for (int i = 0; i < right.num_elements; ++i) right.x[i] = nvcuda::wmma::__float_to_tf32(right.x[i]);
      nvcuda::wmma::mma_sync(sums_, left, right, sums_);
    }

    nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 8, float> sums_;
  };
};

// Plain float32: each lane holds 4 rows x 2 columns.
struct Fma {
  using Element = float;
  static constexpr int kDepth = 1;

  class Sums {
   public:
    __device__ void clear() {
      for (int i = 0; i < 4; ++i) sums_[i][0] = sums_[i][1] = 0;
    }

    __device__ void multiply(Shared<float> a, int lda, Shared<float> b, int ldb, int depth) {
#pragma unroll 4
      for (int d = 0; d < depth; ++d) add(a + d, lda, b + d, ldb);
    }

    __device__ void multiply_outer(Shared<float> a, int lda, Shared<float> b, int ldb) {
#pragma unroll 2
      for (int d = 0; d < 16; ++d) add(a + d * lda, 1, b + d * ldb, 1);
    }

    __device__ void store(Shared<float> to, int leading) const {
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 2; ++j) to[(row() + i) * leading + column() + j] = sums_[i][j];
    }

   private:
    __device__ static int row() { return threadIdx.x % 32 / 8 * 4; }
    __device__ static int column() { return threadIdx.x % 8 * 2; }

    __device__ void add(Shared<float> a, int row_stride, Shared<float> b, int column_stride) {
      const float right[2] = {b[column() * column_stride], b[(column() + 1) * column_stride]};
      for (int i = 0; i < 4; ++i) {
        const float left = a[(row() + i) * row_stride];
        sums_[i][0] += left * right[0];
        sums_[i][1] += left * right[1];
      }
    }

    float sums_[4][2];
  };
};

// Calls run(policy) with the one that `product` names.
template <typename Run>
void with_product(Product product, const Run& run) {
  switch (product) {
    case Product::fma:
      return run(Fma{});
    case Product::tf32:
      return run(WmmaTf32{});
    case Product::float16:
      return run(Wmma16<__half>{});
    case Product::bfloat16:
      return run(Wmma16<__nv_bfloat16>{});
  }
}

}  // namespace csc::cuda

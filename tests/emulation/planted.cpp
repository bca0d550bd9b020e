// Kernels with one bug each, which the emulation has to find.

#include <map>
#include <string>

#include "csrc/cuda/memory.cuh"

namespace planted {

struct Arguments {
  float* data;  // 64 floats.
};

namespace kernels {

using csc::cuda::load_global;
using csc::cuda::Shared;
using csc::cuda::store_global;

Shared<float> memory() { return Shared<float>(csc::cuda::dynamic_shared()); }

// One product of tensor cores, in TF32.
void multiply_anything(float value) {
  nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 8, nvcuda::wmma::precision::tf32, nvcuda::wmma::row_major> a;
  nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, 16, 16, 8, nvcuda::wmma::precision::tf32, nvcuda::wmma::col_major> b;
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 8, float> sums;
  nvcuda::wmma::fill_fragment(a, value);
  nvcuda::wmma::fill_fragment(b, 1.0f);
  nvcuda::wmma::fill_fragment(sums, 0.0f);
  nvcuda::wmma::mma_sync(sums, a, b, sums);
}

void none(Arguments a) {
  const int i = threadIdx.x;
  memory()[i] = load_global(a.data + i);
  __syncthreads();
  store_global(a.data + i, static_cast<float>(memory()[63 - i]));
}

void write_and_read_race(Arguments a) {
  const int i = threadIdx.x;
  memory()[i] = 0;
  __syncthreads();
  memory()[i] = load_global(a.data + i);
  store_global(a.data + i, static_cast<float>(memory()[63 - i]));
}

void read_and_write_race(Arguments a) {
  const int i = threadIdx.x;
  memory()[i] = load_global(a.data + i);
  __syncthreads();
  const float other = memory()[63 - i];
  memory()[i] = other;
}

void write_and_write_race(Arguments) { memory()[threadIdx.x / 2] = 1; }

void warp_barrier_for_a_block_race(Arguments a) {
  const int i = threadIdx.x;
  memory()[i] = 0;
  __syncthreads();
  memory()[i] = load_global(a.data + i);
  __syncwarp();
  store_global(a.data + i, static_cast<float>(memory()[63 - i]));
}

void tensor_core_for_a_barrier_race(Arguments a) {
  const int i = threadIdx.x;
  memory()[i] = 0;
  __syncthreads();
  memory()[i] = load_global(a.data + i);
  multiply_anything(1.0f);
  store_global(a.data + i, static_cast<float>(memory()[i ^ 1]));
}

void threads_at_one_tensor_race(Arguments a) {
  const int i = threadIdx.x;
  store_global(a.data + i, 1.0f);
  load_global(a.data + 63 - i);
}

void blocks_at_one_tensor_race(Arguments a) { store_global(a.data + threadIdx.x, 1.0f); }

void divergent_barrier(Arguments) {
  if (threadIdx.x < 32) __syncthreads();
}

void different_barriers(Arguments) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

void divergent_warp_barrier(Arguments) {
  if (threadIdx.x % 2) __syncwarp();
}

void uninitialised(Arguments a) { store_global(a.data + threadIdx.x, static_cast<float>(memory()[threadIdx.x])); }

void outside_shared(Arguments) { memory()[64 + threadIdx.x] = 1; }

void outside_tensor(Arguments a) { store_global(a.data + 1 + threadIdx.x, 1.0f); }

void outside_tensor_unwatched(Arguments a) { a.data[1 + threadIdx.x] = 1; }

void misaligned_copy(Arguments a) {
  csc::cuda::copy_line((memory() + 4).get(), a.data + 1);
  __pipeline_commit();
  __pipeline_wait_prior(0);
}

void misaligned_load(Arguments a) { load_global(reinterpret_cast<float*>(reinterpret_cast<char*>(a.data) + 2)); }

void misaligned_vector(Arguments a) {
  struct alignas(16) Four {
    float values[4];
  };
  const Four four = *reinterpret_cast<const Four*>(a.data + 1);
  store_global(a.data, four.values[0]);
}

void copy_without_wait(Arguments a) {
  const int i = threadIdx.x;
  if (i < 16) csc::cuda::copy_line((memory() + 4 * i).get(), a.data + 4 * i);
  __pipeline_commit();
  __syncthreads();
  store_global(a.data + i, static_cast<float>(memory()[i]));
}

void store_to_input(Arguments a) { store_global(a.data + threadIdx.x, 1.0f); }

void unrounded_tf32(Arguments) { multiply_anything(0.1f); }

void misaligned_tile(Arguments) {
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sums;
  nvcuda::wmma::fill_fragment(sums, 0.0f);
  nvcuda::wmma::store_matrix_sync((memory() + 1).get(), sums, 16, nvcuda::wmma::mem_row_major);
}

}  // namespace kernels

void run(const std::string& bug, float* data) {
  using namespace kernels;
  static const std::map<std::string, void (*)(Arguments)> all = {
      {"none", none},
      {"write_and_read_race", write_and_read_race},
      {"read_and_write_race", read_and_write_race},
      {"write_and_write_race", write_and_write_race},
      {"warp_barrier_for_a_block_race", warp_barrier_for_a_block_race},
      {"tensor_core_for_a_barrier_race", tensor_core_for_a_barrier_race},
      {"threads_at_one_tensor_race", threads_at_one_tensor_race},
      {"blocks_at_one_tensor_race", blocks_at_one_tensor_race},
      {"divergent_barrier", divergent_barrier},
      {"different_barriers", different_barriers},
      {"divergent_warp_barrier", divergent_warp_barrier},
      {"uninitialised", uninitialised},
      {"outside_shared", outside_shared},
      {"outside_tensor", outside_tensor},
      {"outside_tensor_unwatched", outside_tensor_unwatched},
      {"misaligned_copy", misaligned_copy},
      {"misaligned_load", misaligned_load},
      {"misaligned_vector", misaligned_vector},
      {"copy_without_wait", copy_without_wait},
      {"misaligned_tile", misaligned_tile},
      {"store_to_input", store_to_input},
      {"unrounded_tf32", unrounded_tf32},
  };
  csc::cuda::launch(all.at(bug), dim3(bug == "blocks_at_one_tensor_race" ? 2 : 1), 64, 64 * sizeof(float), nullptr,
                    Arguments{data});
}

}  // namespace planted

// How device code touches memory. Every access goes through these few names, so that tests/emulation can watch
// each one; under nvcc they cost nothing.

#pragma once

#ifdef CSC_EMULATION
#include <emulated_memory.h>
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>
#include <mma.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace csc::cuda {

// An array in shared memory.
template <typename T>
class Shared {
 public:
  Shared() = default;
  __device__ explicit Shared(void* data) : data_(static_cast<T*>(data)) {}
  __device__ T& operator[](int i) const { return data_[i]; }
  __device__ Shared operator+(int i) const { return Shared(data_ + i); }
  __device__ T* get() const { return data_; }

 private:
  T* data_ = nullptr;
};

// The shared memory that the launch asked for.
__device__ inline unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char shared_memory[];
  return shared_memory;
}

template <typename T>
__device__ inline T load_global(const T* from) {
  return *from;
}

template <typename T>
__device__ inline void store_global(T* to, T value) {
  *to = value;
}

// 16 bytes from global to shared memory, asynchronously: there after commit and wait.
__device__ inline void copy_line(void* to, const void* from) { __pipeline_memcpy_async(to, from, 16); }

// 16 bytes within shared memory.
__device__ inline void copy_shared_line(void* to, const void* from) {
  *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
}

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

template <typename Arguments>
bool has_code(void (*kernel)(Arguments)) {
  cudaFuncAttributes attributes;
  const bool found = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)) == cudaSuccess;
  cudaGetLastError();  // An error would be reported at the next launch.
  return found;
}

template <typename Arguments>
void launch(void (*kernel)(Arguments), dim3 grid, int threads, int shared_bytes, void* stream,
            const Arguments& arguments) {
  if (shared_bytes > 48 * 1024) {
    // As much as the device has: another thread's launch of the kernel may need more or less.
    int device, most;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  }
  void* packed[] = {const_cast<Arguments*>(&arguments)};
  check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, dim3(threads), packed, shared_bytes,
                         static_cast<cudaStream_t>(stream)));
}

}  // namespace csc::cuda

#endif

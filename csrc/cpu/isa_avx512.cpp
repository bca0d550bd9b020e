// The row kernels compiled for avx512.

#include "blocks.h"
#include "isa.h"
#include "winograd_blocks.h"

#if defined(__x86_64__)
#if defined(CSC_EMULATED_AVX512)  // Vectors of 16 lanes in two registers each: tests/prove_avx512.py.
#pragma GCC target("avx2,fma")
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif
#define CSC_ISA_AVX512
#define CSC_ISA_NAME "avx512"

namespace csc::avx512 {

#include "kernels.h"

const Kernels& kernels() { return kKernels; }

}  // namespace csc::avx512
#endif

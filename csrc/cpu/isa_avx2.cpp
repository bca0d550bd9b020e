// The row kernels compiled for avx2.

#include "blocks.h"
#include "isa.h"
#include "winograd_blocks.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#define CSC_ISA_AVX2
#define CSC_ISA_NAME "avx2"

namespace csc::avx2 {

#include "kernels.h"

const Kernels& kernels() { return kKernels; }

}  // namespace csc::avx2
#endif

// Winograd's convolutions of bfloat16, for processors with AVX-512 and AVX512_BF16.

#include "blocks.h"
#include "isa.h"
#include "winograd_blocks.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define CSC_ISA_AVX512
#define CSC_BFLOAT16

namespace csc::avx512_bf16 {

#include "vector.h"

#include "winograd_kernels.h"

static const WinogradKernels<Bfloat16> kKernels = winograd_convolution<F2, Bfloat16>();

const WinogradKernels<Bfloat16>& kernels() { return kKernels; }

}  // namespace csc::avx512_bf16
#endif

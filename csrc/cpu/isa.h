// The instruction sets that the kernels are compiled for, and the choice among them.

#pragma once

#include <string>
#include <vector>

#include "blocks.h"
#include "winograd_blocks.h"

namespace csc {

namespace avx512 {
const Kernels& kernels();
}
namespace avx512_bf16 {
const WinogradKernels<Bfloat16>& kernels();
}
namespace avx2 {
const Kernels& kernels();
}
namespace baseline {
const Kernels& kernels();
}

// The kernels in use: the best that this processor runs, chosen when the library is loaded.
const Kernels& chosen_kernels();

// Those of bfloat16, which belong to AVX-512: none where the processor has no units for it, or others are in use.
const WinogradKernels<Bfloat16>* bfloat16_kernels();

// Names of those that this processor runs, the best first.
std::vector<std::string> runnable_isas();

// Use another one, for tests; throws when this processor cannot run it.
void choose_isa(const std::string& name);

}  // namespace csc

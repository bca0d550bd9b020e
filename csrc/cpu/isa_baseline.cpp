// The row kernels compiled for baseline.

#include "blocks.h"
#include "isa.h"
#include "winograd_blocks.h"

#define CSC_ISA_BASELINE
#define CSC_ISA_NAME "baseline"

namespace csc::baseline {

#include "kernels.h"

const Kernels& kernels() { return kKernels; }

}  // namespace csc::baseline

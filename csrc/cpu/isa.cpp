#include "isa.h"

#include <atomic>
#include <stdexcept>

namespace csc {
namespace {

std::vector<const Kernels*> runnable() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  // __builtin_cpu_supports also asks the operating system whether it saves the wide registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#if defined(CSC_EMULATED_AVX512)
  const bool avx512 = avx2;
#else
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  if (avx512) found.push_back(&avx512::kernels());
  if (avx2) found.push_back(&avx2::kernels());
#endif
  found.push_back(&baseline::kernels());
  return found;
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> kernels{runnable().front()};
  return kernels;
}

}  // namespace

const Kernels& chosen_kernels() { return *current().load(std::memory_order_relaxed); }

const WinogradKernels<Bfloat16>* bfloat16_kernels() {
#if defined(__x86_64__)
  if (&chosen_kernels() == &avx512::kernels() && __builtin_cpu_supports("avx512bf16")) return &avx512_bf16::kernels();
#endif
  return nullptr;
}

std::vector<std::string> runnable_isas() {
  std::vector<std::string> names;
  for (const Kernels* kernels : runnable()) names.push_back(kernels->name);
  return names;
}

void choose_isa(const std::string& name) {
  for (const Kernels* kernels : runnable()) {
    if (name == kernels->name) {
      current().store(kernels, std::memory_order_relaxed);
      return;
    }
  }
  throw std::runtime_error("this processor does not run the kernels for \"" + name + "\"");
}

}  // namespace csc

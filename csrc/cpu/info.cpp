// csc_native::isa, runnable_isas, choose_isa, compiler: what the library is and which kernels it uses.

#include <torch/csrc/stable/library.h>

#include "isa.h"

namespace csc {
namespace {

std::string isa() { return chosen_kernels().name; }

std::string runnable() {
  std::string joined;
  for (const std::string& name : runnable_isas()) joined += (joined.empty() ? "" : " ") + name;
  return joined;
}

void choose(std::string name) { choose_isa(name); }

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

}  // namespace
}  // namespace csc

STABLE_TORCH_LIBRARY_IMPL(csc_native, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&csc::isa));
  m.impl("runnable_isas", TORCH_BOX(&csc::runnable));
  m.impl("choose_isa", TORCH_BOX(&csc::choose));
  m.impl("compiler", TORCH_BOX(&csc::compiler));
}

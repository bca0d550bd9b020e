// The launchers, one per kernel: what lies above them knows torch, what lies below knows pointers.

#pragma once

#include "arguments.h"
#include "direct_layout.h"

namespace csc::cuda {

void launch_synthesis(const SynthesisArguments& a, const DirectPlan& plan, Product product, void* stream);
void launch_analysis(const AnalysisArguments& a, const DirectPlan& plan, Product product, void* stream);
void launch_correlation(const CorrelationArguments& a, Product product, void* stream);
void launch_residual_tail(const SynthesisArguments& a, Element element, void* stream);
void launch_step_tail(const AnalysisArguments& a, Element element, void* stream);
// Whether the kernels were compiled for the current device.
bool runs();

void launch_sums(const SumsArguments& a, void* stream);
void launch_fista(const SolveArguments& a, Product product, void* stream);
void launch_fista_backward(const SolveBackwardArguments& a, Product product, void* stream);

}  // namespace csc::cuda

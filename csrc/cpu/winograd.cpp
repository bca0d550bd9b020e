// csc_native::winograd: a 3x3 convolution of channels_last images with the step's epilogue.
//
// Tiles are taken in blocks whose transforms stay in the second-level cache: input transform, sixteen
// products, output transform and epilogue, so that nothing but the images themselves touches memory.

#include <memory>

#include "isa.h"
#include "tensors.h"
#include "winograd_blocks.h"
#include "workspace.h"

namespace csc {
namespace {

// Bytes of transformed tiles that a block may take, of a second-level cache of 1 MiB that also holds weights.
constexpr int64_t kBlockBytes = 512 * 1024;

Picture picture(const Tensor& t, int64_t n) {
  Picture p;
  p.data = static_cast<float*>(t.data_ptr()) + n * t.stride(0);
  p.row = t.stride(2);
  p.column = t.stride(3);
  return p;
}

// The transforms of a dictionary (K, M, 3, 3), float32, contiguous; see WinogradDictionary. Both results have
// 16 times the rounded up channels times the rounded up atoms.
void winograd_weights(Tensor dictionary, double scale, Tensor analysis, Tensor synthesis) {
  const auto& kernels = *chosen_kernels().winograd;
  const WinogradDictionary d{static_cast<const float*>(dictionary.data_ptr()),
                             static_cast<int>(dictionary.size(0)),
                             static_cast<int>(dictionary.size(1)),
                             static_cast<float>(scale),
                             static_cast<float*>(analysis.data_ptr()),
                             static_cast<float*>(synthesis.data_ptr())};
  parallel_tasks((d.atoms + kernels.lanes - 1) / kernels.lanes, [&](int64_t i) {
    const int begin = static_cast<int>(i) * kernels.lanes;
    kernels.weights(d, begin, begin + kernels.lanes);
  });
}

int64_t winograd_lanes() { return chosen_kernels().winograd->lanes; }

void winograd(Tensor input, Tensor weights, int64_t top, int64_t left, std::optional<Tensor> threshold,
              std::optional<Tensor> addend, bool relu, Tensor output) {
  const auto& kernels = *chosen_kernels().winograd;
  WinogradShape s;
  s.inputs = static_cast<int>(input.size(1));
  s.outputs = static_cast<int>(output.size(1));
  s.padded_inputs = round_up(s.inputs, kernels.lanes);
  s.padded_outputs = round_up(s.outputs, kernels.lanes);
  s.height = static_cast<int>(input.size(2));
  s.width = static_cast<int>(input.size(3));
  s.out_height = static_cast<int>(output.size(2));
  s.out_width = static_cast<int>(output.size(3));
  s.top = static_cast<int>(top);
  s.left = static_cast<int>(left);
  WinogradEpilogue epilogue;
  epilogue.relu = relu;
  if (threshold) epilogue.threshold = static_cast<const float*>(threshold->data_ptr());

  const float* u = static_cast<const float*>(weights.data_ptr());
  const int64_t per_point = static_cast<int64_t>(s.padded_inputs) * s.padded_outputs;
  const int64_t tiles = static_cast<int64_t>(s.tiles()) * input.size(0);
  if (tiles == 0) return;
  const int threads = static_cast<int>(torch::stable::get_num_threads());
  const int64_t bytes = kWinogradPoints * int64_t{4} * (s.padded_inputs + s.padded_outputs);
  int64_t block = std::clamp<int64_t>(kBlockBytes / bytes, 8 * kernels.tile_block, 32 * kernels.tile_block);
  block = std::min(block, (tiles + threads - 1) / threads);
  block = round_up(static_cast<int>(block), kernels.tile_block);

  const int64_t blocks = (tiles + block - 1) / block;
  const int64_t tasks = std::min<int64_t>(blocks, threads);
  parallel_tasks(tasks, [&](int64_t task) {
    const Floats from(kWinogradPoints * block * s.padded_inputs), to(kWinogradPoints * block * s.padded_outputs);
    const int64_t from_stride = block * s.padded_inputs, to_stride = block * s.padded_outputs;
    for (int64_t b = blocks * task / tasks; b < blocks * (task + 1) / tasks; ++b) {
      const int count = static_cast<int>(std::min(block, tiles - b * block));
      for (int i = 0; i < count; ++i) {
        const int64_t tile = b * block + i;
        kernels.transform_input(s, picture(input, tile / s.tiles()), static_cast<int>(tile % s.tiles()),
                                from.get() + i * static_cast<int64_t>(s.padded_inputs), from_stride);
      }
      for (int point = 0; point < kWinogradPoints; ++point)
        kernels.multiply(from.get() + point * from_stride, u + point * per_point, round_up(count, kernels.tile_block),
                         s.padded_inputs, s.padded_outputs, to.get() + point * to_stride);
      for (int i = 0; i < count; ++i) {
        const int64_t tile = b * block + i, n = tile / s.tiles();
        kernels.transform_output(s, epilogue, to.get() + i * static_cast<int64_t>(s.padded_outputs), to_stride,
                                 static_cast<int>(tile % s.tiles()), addend ? picture(*addend, n) : Picture{},
                                 picture(output, n));
      }
    }
  });
}

}  // namespace
}  // namespace csc

STABLE_TORCH_LIBRARY_IMPL(csc_native, CPU, m) {
  m.impl("winograd", TORCH_BOX(&csc::winograd));
  m.impl("winograd_weights", TORCH_BOX(&csc::winograd_weights));
}

STABLE_TORCH_LIBRARY_IMPL(csc_native, CompositeExplicitAutograd, m) {
  m.impl("winograd_lanes", TORCH_BOX(&csc::winograd_lanes));
}

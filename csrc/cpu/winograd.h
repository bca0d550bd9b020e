// What the ops of winograd.cpp and winograd_gradient.cpp share.

#pragma once

#include <algorithm>
#include <chrono>

#include "isa.h"
#include "tensors.h"
#include "winograd_blocks.h"
#include "workspace.h"

namespace csc {

// What a block of transformed tiles, and its products, should take of the second-level cache.
constexpr int64_t kWinogradBlockBytes = 256 << 10;

// The points of a transform lie so far apart, an odd number of cache lines: at a power of two they would share few sets
// of the first-level cache.
template <typename Stored>
int64_t winograd_stride(int64_t tiles, int channels) {
  const int64_t line = 64 / sizeof(Stored);
  return ((tiles * channels + line - 1) / line | 1) * line;
}

inline int round_up_to(int64_t n, int64_t multiple) {
  return static_cast<int>((n + multiple - 1) / multiple * multiple);
}

// Calls run(kernels) with the kernels of a tile's side and a tensor's precision.
template <typename Run>
void with_kernels(const Tensor& t, int64_t side, const Run& run) {
  const Winograd& all = *chosen_kernels().winograd;
  if (side != 2 && side != 4) throw std::runtime_error("Winograd's tiles have sides of 2 or 4");
  switch (t.scalar_type()) {
    case torch::headeronly::ScalarType::Float:
      return run(side == 2 ? all.single_2 : all.single_4);
    case torch::headeronly::ScalarType::Double:
      return run(side == 2 ? all.double_2 : all.double_4);
    default:
      throw std::runtime_error("the Winograd kernels take float32 and float64");
  }
}

// The same with those of a convolution, which bfloat16 has too.
template <typename Run>
void with_convolution(const Tensor& t, int64_t side, const Run& run) {
  if (t.scalar_type() != torch::headeronly::ScalarType::BFloat16) return with_kernels(t, side, run);
  const WinogradKernels<Bfloat16>* kernels = bfloat16_kernels();
  if (!kernels || side != 2) throw std::runtime_error("there are no such Winograd kernels of bfloat16 here");
  run(*kernels);
}

// The samples of a tensor.
template <typename Stored>
class Pictures {
 public:
  Pictures() = default;
  explicit Pictures(const Tensor& t) : sample_(t.stride(0)) {
    first_.data = static_cast<Stored*>(t.data_ptr());
    first_.row = t.stride(2);
    first_.column = t.stride(3);
  }
  explicit operator bool() const { return static_cast<bool>(first_); }
  Picture<Stored> operator[](int64_t n) const {
    Picture<Stored> p = first_;
    p.data += n * sample_;
    return p;
  }

 private:
  Picture<Stored> first_;
  int64_t sample_ = 0;
};

template <typename Stored>
Picture<Stored> channels_from(Picture<Stored> p, int64_t channel) {
  p.data += channel;
  return p;
}

// Brings some channels of the pixels [y, y + side) x [x, x + side) of a picture towards the processor. Pixels of a tile
// lie too far apart for it to foresee, and a transform is over before memory answers: whoever multiplies asks for what
// is read next.
template <typename Stored>
void ask_for_pixels(const Picture<Stored>& p, int height, int width, int y, int x, int side, int channels) {
  constexpr int line = 64 / sizeof(Stored);
  for (int r = std::max(y, 0); r < std::min(y + side, height); ++r)
    for (int c = std::max(x, 0); c < std::min(x + side, width); ++c)
      for (int m = 0; m < channels; m += line) __builtin_prefetch(p.data + r * p.row + c * p.column + m, 0, 2);
  // GCC drops calls of a function that does nothing but prefetch.
  asm volatile("");
}

// `input` and `output` are channels_last; `output` may also be the gradient that belongs to one.
template <typename Stored>
WinogradShape winograd_shape(const WinogradKernels<Stored>& kernels, const Tensor& input, const Tensor& output,
                             int64_t top, int64_t left) {
  WinogradShape s;
  s.inputs = static_cast<int>(input.size(1));
  s.outputs = static_cast<int>(output.size(1));
  s.padded_inputs = round_up_to(s.inputs, kernels.lanes);
  s.padded_outputs = round_up_to(s.outputs, kernels.lanes);
  s.height = static_cast<int>(input.size(2));
  s.width = static_cast<int>(input.size(3));
  s.out_height = static_cast<int>(output.size(2));
  s.out_width = static_cast<int>(output.size(3));
  s.top = static_cast<int>(top);
  s.left = static_cast<int>(left);
  s.side = kernels.side;
  s.tile_columns = round_up_to(s.out_width, s.side) / s.side;
  s.tiles = round_up_to(s.out_height, s.side) / s.side * s.tile_columns;
  return s;
}

// Scratch memory of one task.
template <typename Stored>
class Scratch {
 public:
  explicit Scratch(int64_t count) : floats_((count * sizeof(Stored) + sizeof(float) - 1) / sizeof(float)) {}
  Stored* get() const { return reinterpret_cast<Stored*>(floats_.get()); }

 private:
  Floats floats_;
};

// Slice `i` of `count` things, cut into `slices`.
struct Slice {
  int64_t begin, end;
  Slice(int64_t count, int64_t i, int64_t slices) : begin(count * i / slices), end(count * (i + 1) / slices) {}
};

// Where the time of a task goes, for benchmarks: `next(i)` books what passed since the last call on phase i.
class Phases {
 public:
  explicit Phases(bool measured) : measured_(measured) { next(0); }

  void next(int phase) {
    if (!measured_) return;
    const auto now = std::chrono::steady_clock::now();
    if (started_) seconds_[phase] += std::chrono::duration<double>(now - last_).count();
    started_ = true;
    last_ = now;
  }
  // Adds a row of this task to (tasks, 3) float64.
  void write(const std::optional<Tensor>& seconds, int64_t task) const {
    if (!measured_ || task >= seconds->size(0)) return;
    for (int i = 0; i < 3; ++i) static_cast<double*>(seconds->data_ptr())[task * 3 + i] += seconds_[i];
  }

 private:
  bool measured_, started_ = false;
  std::chrono::steady_clock::time_point last_;
  double seconds_[3] = {};
};

}  // namespace csc

// From torch's tensors to the kernels' structs.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <vector>

#include "workspace.h"

namespace csc {

using torch::stable::Tensor;

inline Element element_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case torch::headeronly::ScalarType::Float:
      return Element::float32;
    case torch::headeronly::ScalarType::BFloat16:
      return Element::bfloat16;
    default:
      throw std::runtime_error("the native kernels take float32 and bfloat16");
  }
}

// The numbers of a tensor that sums are left in.
inline float* sums_of(const Tensor& t) {
  if (element_of(t) != Element::float32) throw std::runtime_error("the native kernels leave sums in float32");
  return static_cast<float*>(t.data_ptr());
}

// Sample n of a 4-d tensor; a dimension of size 1 in the first place serves every sample.
inline Strided sample(const Tensor& t, int64_t n) {
  Strided s;
  s.element = element_of(t);
  const int64_t size = s.element == Element::float32 ? 4 : 2;
  s.data = static_cast<char*>(t.data_ptr()) + (t.size(0) == 1 ? 0 : n) * t.stride(0) * size;
  s.channel = t.stride(1);
  s.row = t.stride(2);
  s.column = t.stride(3);
  return s;
}

inline Shape shape_of(int64_t batch, int64_t channels, int64_t height, int64_t width, const Tensor& dictionary,
                      const std::vector<int64_t>& stride, const std::vector<int64_t>& pads) {
  Shape s;
  s.batch = static_cast<int>(batch);
  s.channels = static_cast<int>(channels);
  s.height = static_cast<int>(height);
  s.width = static_cast<int>(width);
  s.atoms = static_cast<int>(dictionary.size(0));
  s.kernel_height = static_cast<int>(dictionary.size(2));
  s.kernel_width = static_cast<int>(dictionary.size(3));
  s.stride_height = static_cast<int>(stride[0]);
  s.stride_width = static_cast<int>(stride[1]);
  s.top = static_cast<int>(pads[0]);
  s.left = static_cast<int>(pads[2]);
  s.code_height = static_cast<int>((height + pads[0] + pads[1] - s.kernel_height) / stride[0] + 1);
  s.code_width = static_cast<int>((width + pads[2] + pads[3] - s.kernel_width) / stride[1] + 1);
  return s;
}

// Whether the kernels can work on a tensor's rows where they are.
inline bool has_rows(const Strided& t, int width) {
  return t.element == Element::float32 && (t.column == 1 || width == 1);
}

// Whether two tensors of one shape have their numbers at the same places.
inline bool lie_alike(const Strided& a, const Strided& b) {
  return a.element == b.element && a.channel == b.channel && a.row == b.row && a.column == b.column;
}

// Whether vectors of so many adjacent numbers of a tensor begin at cache lines, or at whole parts of one.
inline bool is_aligned(const Tensor& t, int lanes) {
  bool aligned = reinterpret_cast<uintptr_t>(t.data_ptr()) % 64 == 0;
  for (int dim = 0; dim < t.dim(); ++dim) aligned = aligned && (t.stride(dim) == 1 || t.stride(dim) % lanes == 0);
  return aligned;
}

// A float32 tensor (N or 1, K, H', W') as rows; see Plane.
inline Plane tensor_plane(const Strided& t) {
  Plane plane;
  plane.base = static_cast<float*>(t.data);
  plane.row_stride = t.row;
  plane.channel_stride = t.channel;
  return plane;
}

// Thresholds t lmbda, or divisors 1 + t mu, of one sample: K numbers, or maps over the code.
struct Penalty {
  const float* values = nullptr;
  Plane map;

  // t: (N, K, 1, 1) or (N, K, H', W'), contiguous.
  Penalty(const std::optional<Tensor>& t, int64_t n) {
    if (!t) return;
    const Strided s = sample(*t, n);
    if (t->size(2) == 1 && t->size(3) == 1)
      values = static_cast<const float*>(s.data);
    else
      map = tensor_plane(s);
  }

  bool divides() const { return values || map; }
};

// Adds what the sums of correlations make, added up in their order and times `scale`, to a contiguous gradient of the
// dictionary; nothing, and false, where pairs of rows or tiles found NaN or infinity: differences spread them.
inline bool add_finite(const DictionaryPack& pack, const std::vector<std::vector<float>>& parts, float scale,
                       const Tensor& to) {
  std::vector<double> sums(pack.sums());
  for (const std::vector<float>& part : parts)
    for (size_t i = 0; i < sums.size(); ++i) sums[i] += part[i];
  const std::vector<float> gradient = pack.gradient(sums.data());
  bool finite = true;
  for (const float value : gradient) finite = finite && std::isfinite(value);
  if (pack.view().combines() && !finite) return false;
  float* entries = sums_of(to);
  for (size_t i = 0; i < gradient.size(); ++i) entries[i] += scale * gradient[i];
  return true;
}

// Runs task(i) for i in [0, count) on torch's threads.
template <typename Task>
void parallel_tasks(int64_t count, const Task& task) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(i);
  });
}

// Pieces of work that threads take one after the other: processors are seldom equally fast, shared ones least of all.
class Pieces {
 public:
  explicit Pieces(int64_t count) : count_(count) {}

  // The next piece; none is left where it is not below the count.
  int64_t take() { return next_.fetch_add(1, std::memory_order_relaxed); }

  // Whether every thread will find another piece. Only then should one be taken before it is needed.
  bool has_plenty() const { return count_ - next_.load(std::memory_order_relaxed) > torch::stable::get_num_threads(); }

  // Calls worker(task) on as many threads as there are pieces for, but for those that come when all are taken.
  template <typename Worker>
  void share(const Worker& worker) {
    parallel_tasks(std::min<int64_t>(count_, torch::stable::get_num_threads()), [&](int64_t task) {
      if (next_.load(std::memory_order_relaxed) < count_) worker(task);
    });
  }

 private:
  const int64_t count_;
  std::atomic<int64_t> next_ = 0;
};

}  // namespace csc

// csc_native::fista: the whole solve of a stem, rows of all iterations in flight at once.
//
// Iteration k needs a few rows of iteration k - 1 and no more, so that the iterations follow each other
// down the image, each kept as a ring of rows that stays in cache: x is read once and z written once,
// whatever n_iter is, and nothing is computed twice. An image is split into bands, whose borders are
// computed by both sides, only where there are fewer images than threads.

#include <memory>

#include "isa.h"
#include "tensors.h"
#include "workspace.h"

namespace csc {
namespace {

constexpr int kBlockRows = 4;  // Rows of codes computed together.

// Codes of more bytes than this are written around the caches: no second-level cache holds as many.
constexpr int64_t kStreamedBytes = 8 << 20;

struct Options {
  bool nonneg;
  bool gradient_at_code;       // The published SDNet: gradient at z, from the extrapolated point.
  std::vector<double> weights; // Momentum after each iteration.
  int n_iter() const { return static_cast<int>(weights.size()); }
};

// One iteration's rows: z_k, the point y_k extrapolated from it, and the residual that it started from.
struct Iteration {
  Plane code, point, residual;
  int codes_done = 0, residuals_done = 0;
};

class Solver {
 public:
  Solver(const Shape& shape, const Widths& widths, const DictionaryPack& dictionary, const Options& options,
         const Kernels& kernels, bool from_code, bool masked, bool direct, bool stream)
      : s_(shape), widths_(widths), dictionary_(dictionary), options_(options), kernels_(kernels),
        pool_(shape, widths), from_code_(from_code), direct_(direct), stream_(stream),
        iterations_(options.n_iter() + 1) {
    zeros_ = pool_.zero_row();
    image_ = pool_.image(s_.height);
    if (masked) {
      mask_ = pool_.image(s_.height);
      masked_image_ = pool_.image(s_.height);
    } else {
      masked_image_ = image_;
    }
    const int n = options.n_iter();
    const int rows = kBlockRows + 2 * s_.reach_height() + 2;
    const int residual_rows = kBlockRows * s_.stride_height + s_.kernel_height + s_.stride_height;
    for (int k = from_code ? 0 : 1; k <= n; ++k) {
      Iteration& it = iterations_[k];
      if (k < n || !direct) it.code = pool_.codes(rows);
      it.point = k > 0 && k < n && options.weights[k - 1] != 0 ? pool_.codes(rows) : it.code;
      if (k > 1 || (k == 1 && from_code)) it.residual = pool_.image(residual_rows);
    }
  }

  // Code rows [begin, end) of one sample.
  void run(const Strided& x, const Strided& z0, const Strided& mask, const Penalty& threshold,
           const Penalty& divisor, const Strided& z, int begin, int end) {
    z0_ = z0;
    z_ = z;
    threshold_ = &threshold;
    divisor_ = &divisor;
    read_image(x, image_, s_, widths_);
    if (mask_) {
      read_image(mask, mask_, s_, widths_);
      for (int h = 0; h < s_.height; ++h)
        for (int64_t i = 0; i < image_.row_stride; ++i)
          masked_image_.row(h)[i] = image_.row(h)[i] * mask_.row(h)[i];
    }
    const int n = options_.n_iter();
    iterations_[n].codes_done = begin;
    for (int k = n; k >= 1; --k) {
      Iteration& it = iterations_[k];
      it.residuals_done = std::max(0, it.codes_done * s_.stride_height - s_.top);
      const int first = ceil_div(it.residuals_done + s_.top - s_.kernel_height + 1, s_.stride_height);
      iterations_[k - 1].codes_done = std::clamp(first, 0, it.codes_done);
    }
    if (direct_) iterations_[n].code = iterations_[n].point = tensor_plane(z);
    advance_codes(n, end);
  }

 private:
  void advance_codes(int k, int target) {
    Iteration& it = iterations_[k];
    while (it.codes_done < target) {
      const int begin = it.codes_done, end = std::min(begin + kBlockRows, target);
      if (k == 0) {
        kernels_.read_codes(z0_, it.code, s_, begin, end);
      } else {
        if (it.residual)
          advance_residuals(k, std::min(s_.height, (end - 1) * s_.stride_height - s_.top + s_.kernel_height));
        step(k, begin, end);
        if (k == options_.n_iter() && !direct_) kernels_.write_codes(it.code, z_, s_, begin, end);
      }
      it.codes_done = end;
    }
  }

  void advance_residuals(int k, int target) {
    Iteration& it = iterations_[k];
    if (it.residuals_done >= target) return;
    const int last = (target - 1 + s_.top) / s_.stride_height;
    const int needed = std::max(std::min(s_.code_height, last + 1), it.codes_done + 1);
    advance_codes(k - 1, std::min(needed, s_.code_height));
    const Iteration& before = iterations_[k - 1];
    SynthesisEpilogue epilogue;
    epilogue.image = image_;
    epilogue.mask = mask_;
    epilogue.residual = it.residual;
    const Plane& at = options_.gradient_at_code ? before.code : before.point;
    kernels_.synthesis({s_, dictionary_.view(), at, zeros_, epilogue}, it.residuals_done, target);
    it.residuals_done = target;
  }

  void step(int k, int begin, int end) {
    Iteration& it = iterations_[k];
    const Iteration& before = iterations_[k - 1];
    if (it.residual) advance_codes(k - 1, end);  // The rows that the step starts from.
    AnalysisEpilogue e;
    e.base = it.residual ? before.point : Plane{};
    e.shrink = options_.nonneg ? Shrink::positive : Shrink::both;
    e.threshold = threshold_->values;
    e.threshold_map = threshold_->map;
    e.divide = divisor_->values || divisor_->map;
    e.divisor = divisor_->values;
    e.divisor_map = divisor_->map;
    e.code = it.code;
    e.stream = stream_ && k == options_.n_iter();
    if (it.point.base != it.code.base) {
      e.beta = static_cast<float>(options_.weights[k - 1]);
      e.previous = before.code;
      e.point = it.point;
    }
    const Plane& image = it.residual ? it.residual : masked_image_;
    kernels_.analysis({s_, dictionary_.view(), image, zeros_, e}, begin, end);
  }

  const Shape& s_;
  const Widths& widths_;
  const DictionaryPack& dictionary_;
  const Options& options_;
  const Kernels& kernels_;
  Pool pool_;
  const bool from_code_, direct_, stream_;
  const float* zeros_ = nullptr;
  Plane image_, mask_, masked_image_;
  std::vector<Iteration> iterations_;
  Strided z0_, z_;
  const Penalty* threshold_ = nullptr;
  const Penalty* divisor_ = nullptr;
};

void fista(Tensor x, Tensor dictionary, Tensor threshold, std::optional<Tensor> divisor, double step_size,
           std::optional<Tensor> z0, std::optional<Tensor> mask, std::vector<int64_t> stride,
           std::vector<int64_t> pads, bool nonneg, bool gradient_at_code, std::vector<double> weights,
           Tensor z) {
  const Shape s = shape_of(x.size(0), x.size(1), x.size(2), x.size(3), dictionary, stride, pads);
  if (s.batch == 0) return;
  const Kernels& kernels = chosen_kernels();
  const Widths widths(s, kernels.lanes);
  const DictionaryPack pack(sample(dictionary, 0), dictionary.stride(0), static_cast<float>(step_size), s, widths,
                            kernels);
  const Options options{nonneg, gradient_at_code, weights};
  const bool direct = has_rows(sample(z, 0), s.code_width);
  const bool stream = direct && is_aligned(z, kernels.lanes) &&
                      int64_t{4} * s.batch * s.atoms * s.code_height * s.code_width > kStreamedBytes;

  // As many bands as give every thread work, none of fewer rows than its borders.
  const int threads = static_cast<int>(torch::stable::get_num_threads());
  const int most = std::max(1, s.code_height / std::max(8, 2 * s.reach_height() * options.n_iter()));
  const int bands = std::clamp(s.batch >= 2 * threads ? 1 : (2 * threads + s.batch - 1) / s.batch, 1, most);
  const int64_t pieces = static_cast<int64_t>(s.batch) * bands;
  const int64_t tasks = std::min<int64_t>(pieces, threads);
  parallel_tasks(tasks, [&](int64_t task) {
    Solver solver(s, widths, pack, options, kernels, z0.has_value(), mask.has_value(), direct, stream);
    for (int64_t piece = pieces * task / tasks; piece < pieces * (task + 1) / tasks; ++piece) {
      const int64_t n = piece / bands;
      const int band = static_cast<int>(piece % bands);
      solver.run(sample(x, n), z0 ? sample(*z0, n) : Strided{}, mask ? sample(*mask, n) : Strided{},
                 Penalty(threshold, n), Penalty(divisor, n), sample(z, n),
                 s.code_height * band / bands, s.code_height * (band + 1) / bands);
    }
  });
}

}  // namespace
}  // namespace csc

STABLE_TORCH_LIBRARY_IMPL(csc_native, CPU, m) { m.impl("fista", TORCH_BOX(&csc::fista)); }

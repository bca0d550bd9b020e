// csc_native::fista_backward: gradients of a stem's solve, from x, z and dL/dz alone.
//
// Each sample's iterates are computed again in scratch memory, then followed backwards. With
// G_k = dL/dz_k on the support of z_k, divided by 1 + t mu, and image_k = -mask A G_k:
//
//   dL/dbase_(k-1) = G_k     dL/dpoint_(k-1) = t A' image_k     dL/dx -= t image_k
//   dL/dD += t (correlation(r_k, G_k) + correlation(image_k, point_(k-1)))
//   dL/dlmbda = -t sum sign(z_k) G_k    dL/dmu = -t sum z_k G_k
//
// The step size of the analysis is in the packed dictionary; the caller multiplies the sums by their t.

#include "isa.h"
#include "tensors.h"
#include "workspace.h"

namespace csc {
namespace {

constexpr int kBlockRows = 4;

struct Options {
  bool nonneg, gradient_at_code;
  std::vector<double> weights;
  bool image_gradient, dictionary_gradient, code_gradient, penalty_gradient;
  int n_iter() const { return static_cast<int>(weights.size()); }
};

class Reverse {
 public:
  Reverse(const Shape& shape, const Widths& widths, const DictionaryPack& dictionary, const Options& options,
          const Kernels& kernels, bool from_code, bool masked)
      : s_(shape), widths_(widths), dictionary_(dictionary), o_(options), kernels_(kernels), pool_(shape, widths),
        from_code_(from_code) {
    const int n = o_.n_iter(), rows = s_.code_height;
    zeros_ = pool_.zero_row();
    image_ = pool_.image(s_.height);
    mask_ = masked ? pool_.image(s_.height) : Plane{};
    masked_image_ = masked ? pool_.image(s_.height) : image_;
    if (o_.image_gradient) {
      last_image_ = pool_.image(s_.height);
      total_ = pool_.image(s_.height);
    }
    codes_.resize(n + 1);
    points_.resize(n + 1);
    residuals_.resize(n + 1);
    for (int k = from_code ? 0 : 1; k <= n; ++k) {
      if (k < n) codes_[k] = pool_.codes(rows);
      points_[k] = has_momentum(k) ? pool_.codes(rows) : codes_[k];
      if (k > 1 || (k == 1 && from_code)) residuals_[k] = pool_.image(s_.height);
    }
    // dL/dz_k, and where momentum spreads it also dL/dz_(k-1) and dL/dz_(k-2).
    bool spreads = false;
    for (int k = 1; k < n; ++k) spreads = spreads || has_momentum(k);
    for (int i = 0; i < (spreads ? 3 : 1); ++i) gradients_[i] = pool_.codes(rows);
    if (o_.dictionary_gradient) {
      const int64_t count = static_cast<int64_t>(s_.taps()) * s_.atoms * kernels.lanes;
      sums_ = pool_.floats(count);
    }
  }

  // What its samples add to the dictionary's gradient, in the kernels' order: [taps][K][lanes].
  const float* sums() const { return sums_; }

  // penalty: [2][K], sums of sign(z) G and z G of this sample.
  void run(const Strided& gradient, const Strided& x, const Strided& z0, const Strided& mask, const Strided& z,
           const Penalty& threshold, const Penalty& divisor, const Strided& grad_x, const Strided& grad_z0,
           float* penalty) {
    threshold_ = &threshold;
    divisor_ = &divisor;
    const int n = o_.n_iter();
    read_image(x, image_, s_, widths_);
    if (mask_) {
      read_image(mask, mask_, s_, widths_);
      for (int h = 0; h < s_.height; ++h)
        for (int64_t i = 0; i < image_.row_stride; ++i)
          masked_image_.row(h)[i] = image_.row(h)[i] * mask_.row(h)[i];
    }
    if (from_code_) kernels_.read_codes(z0, codes_[0], s_, 0, s_.code_height);
    for (int k = 1; k < n; ++k) iterate(k);
    if (residuals_[n]) residual(n);
    if (total_)
      for (int h = 0; h < s_.height; ++h) std::fill_n(total_.row(h), total_.row_stride, 0.0f);

    codes_[n] = rows_of(z, last_code_);
    Plane current = gradients_[0], before = gradients_[1], earlier = gradients_[2];
    Plane source = rows_of(gradient, current);
    bool before_used = false, earlier_used = false;  // Whether they hold anything yet.
    for (int k = n; k >= 1; --k) {
      const bool has_point = step_back(k, source, current, penalty);
      if (!has_point) break;
      const float beta = has_momentum(k - 1) ? static_cast<float>(o_.weights[k - 2]) : 0.0f;
      if (beta == 0 && !before_used) {
        analyse_into(current, current);  // Base and point are both z_(k-1): it goes on in place.
        source = current;
        continue;
      }
      if (!before_used) clear(before);
      if (beta != 0 && !earlier_used) clear(earlier);
      spread(beta, current, before, earlier);
      const Plane spent = current;
      current = source = before;
      before = earlier;
      earlier = spent;
      before_used = beta != 0;
      earlier_used = false;
    }
    if (total_) write_image(total_, grad_x, s_, widths_);
    if (o_.code_gradient) kernels_.write_codes(current, grad_z0, s_, 0, s_.code_height);
  }

 private:
  bool has_momentum(int k) const { return k > 0 && k < o_.n_iter() && o_.weights[k - 1] != 0; }

  void clear(const Plane& codes) {
    for (int i = 0; i < s_.code_height; ++i)
      for (int k = 0; k < s_.atoms; ++k)
        std::fill_n(codes.row(i) + k * codes.channel_stride, s_.code_width, 0.0f);
  }

  const Plane& point(int k) const { return o_.gradient_at_code ? codes_[k] : points_[k]; }

  void residual(int k) {
    SynthesisEpilogue e;
    e.image = image_;
    e.mask = mask_;
    e.residual = residuals_[k];
    synthesis(point(k - 1), e);
  }

  void synthesis(const Plane& code, const SynthesisEpilogue& e) {
    const SynthesisBlock block{s_, dictionary_.view(), code, zeros_, e};
    const int rows = kBlockRows * s_.stride_height;
    for (int h = 0; h < s_.height; h += rows) kernels_.synthesis(block, h, std::min(h + rows, s_.height));
  }

  void analysis(const Plane& image, const AnalysisEpilogue& e) {
    const AnalysisBlock block{s_, dictionary_.view(), image, zeros_, e};
    for (int i = 0; i < s_.code_height; i += kBlockRows)
      kernels_.analysis(block, i, std::min(i + kBlockRows, s_.code_height));
  }

  // z_k from z_(k-1), as the solve computed it.
  void iterate(int k) {
    if (residuals_[k]) residual(k);
    AnalysisEpilogue e;
    if (residuals_[k]) e.base = points_[k - 1];
    e.shrink = o_.nonneg ? Shrink::positive : Shrink::both;
    e.threshold = threshold_->values;
    e.threshold_map = threshold_->map;
    e.divide = divides();
    e.divisor = divisor_->values;
    e.divisor_map = divisor_->map;
    e.code = codes_[k];
    if (has_momentum(k)) {
      e.beta = static_cast<float>(o_.weights[k - 1]);
      e.previous = codes_[k - 1];
      e.point = points_[k];
    }
    analysis(residuals_[k] ? residuals_[k] : masked_image_, e);
  }

  bool divides() const { return divisor_->values || divisor_->map; }

  // Rows of a tensor's sample: its own where they can be, else read into `scratch`.
  Plane rows_of(const Strided& t, Plane& scratch) {
    if (has_rows(t, s_.code_width)) return tensor_plane(t);
    if (!scratch) scratch = pool_.codes(s_.code_height);
    kernels_.read_codes(t, scratch, s_, 0, s_.code_height);
    return scratch;
  }

  // From dL/dz_k in `source` to G_k in `current` and image_k; false for the step from zero, which has no point.
  bool step_back(int k, const Plane& source, const Plane& current, float* penalty) {
    PenaltySums sums;
    if (o_.penalty_gradient) sums = {penalty, penalty + s_.atoms};
    kernels_.support({s_, source, codes_[k], current, divides(), divisor_->values, divisor_->map, sums}, 0,
                     s_.code_height);

    const bool has_point = static_cast<bool>(residuals_[k]);
    if (o_.dictionary_gradient) correlate(has_point ? residuals_[k] : masked_image_, current);
    gradient_image_ = has_point ? residuals_[k] : last_image_;  // Its residual has served.
    if (gradient_image_) {
      SynthesisEpilogue e;
      e.scale = -1;
      e.mask = mask_;
      e.residual = gradient_image_;
      e.total = total_;
      synthesis(current, e);
    }
    if (has_point && o_.dictionary_gradient) correlate(gradient_image_, point(k - 1));
    return has_point;
  }

  // to = base + t A' image_k
  void analyse_into(const Plane& to, const Plane& base) {
    AnalysisEpilogue e;
    e.base = base;
    e.code = to;
    analysis(gradient_image_, e);
  }

  // With y_(k-1) = z_(k-1) + beta (z_(k-1) - z_(k-2)): adds to dL/dz_(k-1) and dL/dz_(k-2).
  void spread(float beta, const Plane& current, const Plane& before, const Plane& earlier) {
    // The published SDNet takes the gradient at z_(k-1), FISTA at y_(k-1), as the step's base.
    if (o_.gradient_at_code) analyse_into(before, before);
    else analyse_into(current, current);
    kernels_.combine(before, 1 + beta, current, s_, 0, s_.code_height);
    if (beta != 0) kernels_.combine(earlier, -beta, current, s_, 0, s_.code_height);
  }

  void correlate(const Plane& image, const Plane& code) {
    // Blocks of rows small enough that a few atoms' codes stay in the first cache for all taps.
    const int rows = std::max(2 * kBlockRows, 512 / s_.code_width);
    const CorrelationBlock block{s_, dictionary_.view(), image, code, sums_};
    for (int i = 0; i < s_.code_height; i += rows) kernels_.correlation(block, i, std::min(i + rows, s_.code_height));
  }

  const Shape& s_;
  const Widths& widths_;
  const DictionaryPack& dictionary_;
  const Options& o_;
  const Kernels& kernels_;
  Pool pool_;
  const bool from_code_;
  const float* zeros_ = nullptr;
  Plane image_, mask_, masked_image_, gradient_image_, last_image_, total_;
  std::vector<Plane> codes_, points_, residuals_;
  Plane gradients_[3], last_code_;
  float* sums_ = nullptr;
  const Penalty* threshold_ = nullptr;
  const Penalty* divisor_ = nullptr;
};

// -grad_x / t, grad_z0, penalty (N, 2, K) and grad_dictionary / t (K, M, kH, kW) are written where given;
// the last two arrive as zeros, float32.
void fista_backward(Tensor gradient, Tensor x, Tensor dictionary, Tensor threshold, std::optional<Tensor> divisor,
                    double step_size, std::optional<Tensor> z0, std::optional<Tensor> mask,
                    std::vector<int64_t> stride, std::vector<int64_t> pads, bool nonneg, bool gradient_at_code,
                    std::vector<double> weights, Tensor z, std::optional<Tensor> grad_x,
                    std::optional<Tensor> grad_z0, std::optional<Tensor> penalty,
                    std::optional<Tensor> grad_dictionary) {
  const Shape s = shape_of(x.size(0), x.size(1), x.size(2), x.size(3), dictionary, stride, pads);
  if (s.batch == 0) return;
  const Kernels& kernels = chosen_kernels();
  const Widths widths(s, kernels.lanes);
  const DictionaryPack pack(sample(dictionary, 0), dictionary.stride(0), static_cast<float>(step_size), s, widths,
                            kernels);
  const Options options{nonneg,
                        gradient_at_code,
                        weights,
                        grad_x.has_value(),
                        grad_dictionary.has_value(),
                        grad_z0.has_value(),
                        penalty.has_value()};

  const int64_t tasks = std::min<int64_t>(s.batch, torch::stable::get_num_threads());
  std::vector<std::unique_ptr<Reverse>> reverses(tasks);
  parallel_tasks(tasks, [&](int64_t task) {
    reverses[task] = std::make_unique<Reverse>(s, widths, pack, options, kernels, z0.has_value(), mask.has_value());
    for (int64_t n = s.batch * task / tasks; n < s.batch * (task + 1) / tasks; ++n) {
      reverses[task]->run(
          sample(gradient, n), sample(x, n), z0 ? sample(*z0, n) : Strided{}, mask ? sample(*mask, n) : Strided{},
          sample(z, n), Penalty(threshold, n), Penalty(divisor, n), grad_x ? sample(*grad_x, n) : Strided{},
          grad_z0 ? sample(*grad_z0, n) : Strided{},
          penalty ? static_cast<float*>(penalty->data_ptr()) + n * 2 * s.atoms : nullptr);
    }
  });
  if (!grad_dictionary) return;
  for (const auto& reverse : reverses)  // In the order of the samples: the same bits every time.
    add_sums(reverse->sums(), kernels.lanes, s, static_cast<float*>(grad_dictionary->data_ptr()));
}

}  // namespace
}  // namespace csc

STABLE_TORCH_LIBRARY_IMPL(csc_native, CPU, m) { m.impl("fista_backward", TORCH_BOX(&csc::fista_backward)); }

// csc_native::fista_backward: gradients of a stem's solve, from x, z and dL/dz alone.
//
// The iterates are computed again, and the gradients follow them backwards, rows of everything in flight at once
// (iterates.h): the gradient of step k needs a few rows of that of step k + 1 and no more. With G_k = dL/dz_k on the
// support of z_k, divided by 1 + t mu, and image_k = -mask A G_k:
//
//   dL/dbase_(k-1) = G_k     dL/dpoint_(k-1) = t A' image_k     dL/dx -= t image_k
//   dL/dD += t (correlation(r_k, G_k) + correlation(image_k, point_(k-1)))
//   dL/dlmbda = -t sum sign(z_k) G_k    dL/dmu = -t sum z_k G_k
//
// and, with y_k = z_k + beta_k (z_k - z_(k-1)) and H_k the gradient in the base y_(k-1) of step k,
//
//   dL/dz_k = (1 + beta_k) H_(k+1) - beta_(k+1) H_(k+2),  H_k = G_k + t A' image_k;
//
// the published SDNet takes its gradient at z_(k-1), so that there H_k = G_k and dL/dz_(k-1) has t A' image_k alone.
// The step size of the analysis is in the packed dictionary; the gradients of x and the dictionary take theirs at the
// end.

#include "iterates.h"

namespace csc {
namespace {

// Code rows computed together. Measured: with fewer positions the correlation loads and stores its sums too often, with
// more the rings leave the second-level cache.
constexpr int kBlockPositions = 1024;
int block_rows(const Shape& s) { return std::max(kBlockPositions / s.code_width / 2 * 2, 4); }

// Groups that the samples are divided into, where there are as many: after each, a task's sums are added up and
// cleared.
constexpr int64_t kGroups = 32;

// Which gradients are wanted.
struct Wanted {
  bool image, dictionary, code, penalty;
};

class Reverse {
 public:
  // divided: by 1 + t mu.
  Reverse(const Solve& solve, const Wanted& wanted, float step_size, bool divided)
      : solve_(solve),
        s_(solve.shape),
        o_(solve.options),
        kernels_(solve.kernels),
        wanted_(wanted),
        step_size_(step_size),
        plain_(!divided && !wanted.penalty),
        pool_(solve.shape, solve.widths),
        block_(block_rows(s_)),
        // z_k runs ahead of G_k by the reach of the n - k gradient steps and of the n - k steps in between; and rows of
        // G_k in its place wait for G_(k-1).
        iterates_(solve, pool_, block_, o_.n_iter() - 1,
                  [this](int k) {
                    const int behind = replaces_code(k) ? block_ + s_.reach_height() + 2 : 0;
                    return 2 * (o_.n_iter() - k) * s_.reach_height() + behind;
                  }),
        stages_(o_.n_iter() + 1) {
    // G_(k+1) runs ahead of G_k by the reach of a step, and H_(k+2) by that of two.
    const int pixel_rows = (block_ + 5) * s_.stride_height + 2 * s_.kernel_height;
    bool spreads = false;
    for (int k = 1; k < o_.n_iter(); ++k) spreads = spreads || o_.has_momentum(k);
    const int rows = block_ + (spreads ? 2 : 1) * s_.reach_height() + 2;
    for (int k = wanted.code ? 0 : 1; k <= o_.n_iter(); ++k) {
      Stage& stage = stages_[k];
      stage.gradient = replaces_code(k) ? iterates_.code(k) : pool_.codes(rows);
      // H_k, where momentum reads it again later.
      stage.base = spreads && !o_.gradient_at_code ? pool_.codes(rows) : stage.gradient;
      stage.image = pool_.image(pixel_rows);
    }
    if (wanted.image) total_ = pool_.image(s_.height);
    if (wanted.dictionary) {
      sums_.resize(solve.dictionary.sums());
      room_ = std::min(block_ / 2, kPairsToCorrelate);
      combined_ = pool_.combined(solve.dictionary.view(), room_, true);
    }
  }

  // What the samples since the last call add to the sums of the dictionary's gradient.
  std::vector<float> take_sums() {
    std::vector<float> sums(sums_.begin(), sums_.end());
    std::fill(sums_.begin(), sums_.end(), 0.0);
    return sums;
  }

  // penalty: [2][K], sums of sign(z) G and z G of this sample.
  void run(const Strided& gradient, const Strided& x, const Strided& z0, const Strided& mask, const Strided& z,
           const Penalty& threshold, const Penalty& divisor, const Strided& grad_x, const Strided& grad_z0,
           float* penalty) {
    gradient_ = gradient;
    z_ = z;
    divisor_ = &divisor;
    grad_z0_ = grad_z0;
    penalty_ = penalty;
    for (Stage& stage : stages_) {
      stage.gradients_done = 0;
      stage.images = {};
    }
    if (total_)
      for (int h = 0; h < s_.height; ++h) std::fill_n(total_.row(h), total_.row_stride, 0.0f);
    iterates_.start(x, z0, mask, threshold, divisor, 0);
    const int first = solve_.from_code ? 0 : 1;
    for (int row = 0; row < s_.code_height; row += block_)
      advance_gradients(first, std::min(row + block_, s_.code_height));
    if (total_) {
      advance_images(1, s_.height);
      write_image(total_, -step_size_, grad_x, s_, solve_.widths);
    }
  }

 private:
  // G_k, what passed through the base of its step, and image_k.
  struct Stage {
    Plane gradient, base, image;
    int gradients_done = 0;
    SynthesisRows images;
  };

  // Code rows of G_k up to `target`, with all that they add to the sums; of dL/dz0 for k = 0.
  void advance_gradients(int k, int target) {
    Stage& stage = stages_[k];
    target = whole_pairs(s_, target);
    while (stage.gradients_done < target) {
      const int begin = stage.gradients_done, end = std::min(begin + block_, target);
      if (k == 0) {
        arrive(0, begin, end);
        if (wanted_.code) kernels_.write_codes(stage.gradient, grad_z0_, s_, begin, end, false);
      } else {
        take_support(k, begin, end);
        if (wanted_.dictionary) {
          if (iterates_.has_point(k)) iterates_.advance_residuals(k, s_.pixels_of(end));
          correlate(iterates_.image_of(k), stage.gradient, begin, end);
        }
      }
      stage.gradients_done = end;
      // The step from zero passes nothing on but to x, whose rows must be had while those of G_1 are there.
      if (k == 1 && !iterates_.has_point(1) && total_)
        advance_images(1, end == s_.code_height ? s_.height : std::min(s_.height, end * s_.stride_height - s_.top));
    }
  }

  // G_k from dL/dz_k.
  void take_support(int k, int begin, int end) {
    Plane source = stages_[k].gradient, code;
    if (k == o_.n_iter()) {
      if (plain_ && lie_alike(gradient_, z_) && !has_rows(z_, s_.code_width))
        return kernels_.read_codes(gradient_, z_, source, s_, begin, end);
      source = rows_of(gradient_, gradient_rows_, begin, end);
      code = rows_of(z_, code_rows_, begin, end);
    } else {
      iterates_.advance_codes(k, end);
      if (arrive(k, begin, end)) return;
      code = iterates_.code(k);
    }
    PenaltySums sums;
    if (wanted_.penalty) sums = {penalty_, penalty_ + s_.atoms};
    kernels_.support(
        {s_, source, code, stages_[k].gradient, divisor_->divides(), divisor_->values, divisor_->map, sums}, begin,
        end);
  }

  // dL/dz_k, from the steps after it, into the rows of G_k; whether it is G_k already.
  bool arrive(int k, int begin, int end) {
    Stage& stage = stages_[k];
    Stage& next = stages_[k + 1];
    advance_images(k + 1, s_.pixels_of(end));
    advance_gradients(k + 1, end);
    if (wanted_.dictionary) {
      iterates_.advance_codes(k, end);
      correlate(next.image, iterates_.point_of_gradient(k), begin, end);
    }
    if (k == 0 && !wanted_.code) return false;
    if (replaces_code(k)) {
      analyse(next.image, next.gradient, iterates_.code(k), stage.gradient, begin, end);
      return true;
    }
    const float beta = weight(k), later = weight(k + 1);
    if (beta == 0 && later == 0) {
      analyse(next.image, next.gradient, Plane{}, stage.gradient, begin, end);
      return false;
    }
    if (o_.gradient_at_code) {
      analyse(next.image, Plane{}, Plane{}, stage.gradient, begin, end);
    } else {
      analyse(next.image, next.gradient, Plane{}, next.base, begin, end);
      clear(stage.gradient, begin, end);
    }
    kernels_.combine(stage.gradient, 1 + beta, next.base, s_, begin, end);
    if (later != 0) kernels_.combine(stage.gradient, -later, stages_[k + 2].base, s_, begin, end);
    return false;
  }

  // Whether G_k is dL/dz_k on the support of z_k, whose rows are not needed any more once those of G_k are there, and
  // is read for G_(k-1) alone: without momentum in the steps around it.
  bool replaces_code(int k) const {
    return plain_ && k > 0 && k < o_.n_iter() && weight(k - 1) == 0 && weight(k) == 0 && weight(k + 1) == 0;
  }

  // beta_k of y_k = z_k + beta_k (z_k - z_(k-1)), which only a step after k reads.
  float weight(int k) const { return o_.has_momentum(k) ? static_cast<float>(o_.weights[k - 1]) : 0.0f; }

  // Pixel rows of image_k up to `target`.
  void advance_images(int k, int target) {
    Stage& stage = stages_[k];
    if (stage.images.finished >= target) return;
    advance_gradients(k, s_.codes_of(target));
    SynthesisEpilogue e;
    e.mask = iterates_.mask();
    e.residual = stage.image;
    e.total = total_;
    kernels_.synthesis({s_, solve_.dictionary.view(), stage.gradient, iterates_.zeros(), e, iterates_.products()},
                       stage.images, target);
  }

  // to = base + t A' image, on the support of a code where one is given.
  void analyse(const Plane& image, const Plane& base, const Plane& support, const Plane& to, int begin, int end) {
    AnalysisEpilogue e;
    e.base = base;
    e.support = support;
    e.code = to;
    kernels_.analysis({s_, solve_.dictionary.view(), image, iterates_.zeros(), e, iterates_.combined()}, begin, end);
  }

  void correlate(const Plane& image, const Plane& code, int begin, int end) {
    kernels_.correlation({s_, solve_.dictionary.view(), image, code, iterates_.zeros(), sums_.data(), combined_, room_},
                         begin, end);
  }

  void clear(const Plane& codes, int begin, int end) {
    for (int i = begin; i < end; ++i)
      for (int k = 0; k < s_.atoms; ++k) std::fill_n(codes.row(i) + k * codes.channel_stride, s_.code_width, 0.0f);
  }

  // Rows of a tensor's sample: its own where they can be, else read into `scratch`.
  Plane rows_of(const Strided& t, Plane& scratch, int begin, int end) {
    if (has_rows(t, s_.code_width)) return tensor_plane(t);
    if (!scratch) scratch = pool_.codes(block_);
    kernels_.read_codes(t, {}, scratch, s_, begin, end);
    return scratch;
  }

  const Solve& solve_;
  const Shape& s_;
  const SolveOptions& o_;
  const Kernels& kernels_;
  const Wanted wanted_;
  const float step_size_;
  const bool plain_;  // No mu, and no gradient of lmbda or mu: G_k is dL/dz_k on the support.
  Pool pool_;
  const int block_;
  Iterates iterates_;
  std::vector<Stage> stages_;
  Plane total_, gradient_rows_, code_rows_;
  std::vector<double> sums_;
  float* combined_ = nullptr;
  int room_ = 0;
  float* penalty_ = nullptr;
  Strided gradient_, z_, grad_z0_;
  const Penalty* divisor_ = nullptr;
};

// grad_x, grad_z0, penalty (N, 2, K) and grad_dictionary (K, M, kH, kW) are written where given; the last two arrive as
// zeros, float32.
void fista_backward(Tensor gradient, Tensor x, Tensor dictionary, Tensor threshold, std::optional<Tensor> divisor,
                    double step_size, std::optional<Tensor> z0, std::optional<Tensor> mask, std::vector<int64_t> stride,
                    std::vector<int64_t> pads, bool pairs, bool nonneg, bool gradient_at_code,
                    std::vector<double> weights, Tensor z, std::optional<Tensor> grad_x, std::optional<Tensor> grad_z0,
                    std::optional<Tensor> penalty, std::optional<Tensor> grad_dictionary) {
  const Shape s = shape_of(x.size(0), x.size(1), x.size(2), x.size(3), dictionary, stride, pads);
  if (s.batch == 0) return;
  const Kernels& kernels = chosen_kernels();
  const Widths widths(s, kernels.lanes);
  const float step = static_cast<float>(step_size);
  const DictionaryPack pack(sample(dictionary, 0), dictionary.stride(0), step, s, widths, kernels, pairs);
  const SolveOptions options{nonneg, gradient_at_code, weights};
  const Solve solve{s, widths, pack, options, kernels, z0.has_value(), mask.has_value()};
  float* const penalties = penalty ? sums_of(*penalty) : nullptr;
  const Wanted wanted{grad_x.has_value(), grad_dictionary.has_value(), grad_z0.has_value(), penalty.has_value()};

  // What a group adds to the dictionary's gradient does not depend on who computes it, and groups are added in order:
  // the same bits every time.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t groups = std::min<int64_t>(s.batch, std::max<int64_t>(kGroups, 4 * threads));
  std::vector<std::vector<float>> parts(groups);
  Pieces queue(groups);
  queue.share([&](int64_t) {
    Reverse reverse(solve, wanted, step, divisor.has_value());
    for (int64_t group; (group = queue.take()) < groups;) {
      for (int64_t n = s.batch * group / groups; n < s.batch * (group + 1) / groups; ++n) {
        const Penalty thresholds(threshold, n), divisors(divisor, n);
        reverse.run(sample(gradient, n), sample(x, n), z0 ? sample(*z0, n) : Strided{},
                    mask ? sample(*mask, n) : Strided{}, sample(z, n), thresholds, divisors,
                    grad_x ? sample(*grad_x, n) : Strided{}, grad_z0 ? sample(*grad_z0, n) : Strided{},
                    penalties ? penalties + n * 2 * s.atoms : nullptr);
      }
      if (grad_dictionary) parts[group] = reverse.take_sums();
    }
  });
  if (!grad_dictionary || add_finite(pack, parts, step, *grad_dictionary)) return;
  fista_backward(gradient, x, dictionary, threshold, divisor, step_size, z0, mask, stride, pads, false, nonneg,
                 gradient_at_code, weights, z, {}, {}, {}, grad_dictionary);
}

}  // namespace
}  // namespace csc

STABLE_TORCH_LIBRARY_IMPL(csc_native, CPU, m) { m.impl("fista_backward", TORCH_BOX(&csc::fista_backward)); }

// The iterates of a solve, rows of all of them in flight at once.
//
// Iteration k needs a few rows of iteration k - 1 and no more, so that the iterations follow each other down the
// image, each kept as a ring of rows that stays in cache: whoever asks for rows of one iterate makes those before it
// advance as far as it needs, and nothing is computed twice.

#pragma once

#include <vector>

#include "isa.h"
#include "tensors.h"
#include "workspace.h"

namespace csc {

// The options of a solve from zero or from z0.
struct SolveOptions {
  bool nonneg;
  bool gradient_at_code;        // The published SDNet: gradient at z, from the extrapolated point.
  std::vector<double> weights;  // Momentum after each iteration.
  int n_iter() const { return static_cast<int>(weights.size()); }
  bool has_momentum(int k) const { return k > 0 && k < n_iter() && weights[k - 1] != 0; }
};

// What a solve works with, the same for every sample.
struct Solve {
  const Shape& shape;
  const Widths& widths;
  const DictionaryPack& dictionary;
  const SolveOptions& options;
  const Kernels& kernels;
  bool from_code, masked;
};

class Iterates {
 public:
  // Rows of codes are computed in blocks of `block`, and z_k runs up to `ahead(k)` rows ahead of the block of it that
  // is read last. `last`: how many iterates there are, n or n - 1.
  template <typename Ahead>
  Iterates(const Solve& solve, Pool& pool, int block, int last, const Ahead& ahead)
      : solve_(solve), s_(solve.shape), block_(block), iterations_(solve.options.n_iter() + 1) {
    zeros_ = pool.zero_row();
    combined_ = pool.combined(solve.dictionary.view(), kPairsAtATime);
    products_ = pool.products(solve.dictionary.view(), solve.kernels);
    image_ = masked_image_ = pool.image(s_.height);
    if (solve.masked) {
      mask_ = pool.image(s_.height);
      masked_image_ = pool.image(s_.height);
    }
    for (int k = first(); k <= solve.options.n_iter(); ++k) {
      Iteration& it = iterations_[k];
      // Ends are rounded up to whole pairs, those of every iterate after it and of every gradient.
      const int rows = block + ahead(k) + 2 * (solve.options.n_iter() - k) + 2;
      if (k <= last) it.code = pool.codes(rows);
      it.point = solve.options.has_momentum(k) ? pool.codes(rows) : it.code;
      // Image rows are begun with the first code row that they see.
      if (has_point(k)) it.residual = pool.image((rows + 2) * s_.stride_height + 2 * s_.kernel_height);
    }
  }

  // Begins a sample, whose iterate n will be asked for from row `begin` on.
  void start(const Strided& x, const Strided& z0, const Strided& mask, const Penalty& threshold, const Penalty& divisor,
             int begin) {
    z0_ = z0;
    threshold_ = &threshold;
    divisor_ = &divisor;
    read_image(x, image_, s_, solve_.widths);
    if (mask_) {
      read_image(mask, mask_, s_, solve_.widths);
      for (int h = 0; h < s_.height; ++h)
        for (int64_t i = 0; i < image_.row_stride; ++i) masked_image_.row(h)[i] = image_.row(h)[i] * mask_.row(h)[i];
    }
    const int n = solve_.options.n_iter();
    iterations_[n].codes_done = begin;
    for (int k = n; k >= 1; --k) {
      Iteration& it = iterations_[k];
      const int row = std::max(0, it.codes_done * s_.stride_height - s_.top);
      const int first_row = ceil_div(row + s_.top - s_.kernel_height + 1, s_.stride_height);
      iterations_[k - 1].codes_done = std::clamp(first_row, 0, it.codes_done) / 2 * 2;
      // The first pair of codes also sees rows before these, which nobody reads.
      it.residuals = {iterations_[k - 1].codes_done, row, row};
    }
  }

  // Rows of z_k, and of the point y_k extrapolated from it, up to `target`.
  void advance_codes(int k, int target) {
    Iteration& it = iterations_[k];
    target = whole_pairs(s_, target);
    while (it.codes_done < target) {
      const int begin = it.codes_done, end = std::min(begin + block_, target);
      if (k == 0) {
        solve_.kernels.read_codes(z0_, {}, it.code, s_, begin, end);
      } else {
        if (has_point(k)) advance_residuals(k, s_.pixels_of(end));
        step(k, begin, end);
      }
      it.codes_done = end;
    }
  }

  // Rows of the residual that step k starts from, up to the pixel row `target`.
  void advance_residuals(int k, int target) {
    Iteration& it = iterations_[k];
    if (it.residuals.finished >= target) return;
    advance_codes(k - 1, std::max(s_.codes_of(target), std::min(it.codes_done + 1, s_.code_height)));
    SynthesisEpilogue e;
    e.image = image_;
    e.mask = mask_;
    e.residual = it.residual;
    solve_.kernels.synthesis({s_, solve_.dictionary.view(), point_of_gradient(k - 1), zeros_, e, products_},
                             it.residuals, target);
  }

  int first() const { return solve_.from_code ? 0 : 1; }
  bool has_point(int k) const { return k > 1 || solve_.from_code; }  // The step from zero has none.

  // The image that step k's analysis reads.
  const Plane& image_of(int k) const { return has_point(k) ? iterations_[k].residual : masked_image_; }
  const Plane& code(int k) const { return iterations_[k].code; }
  const Plane& point_of_gradient(int k) const {
    return solve_.options.gradient_at_code ? iterations_[k].code : iterations_[k].point;
  }
  const Plane& mask() const { return mask_; }
  const float* zeros() const { return zeros_; }
  float* combined() const { return combined_; }
  const Plane& products() const { return products_; }

  // Where the last iterate goes, a block at a time; `stream`: around the caches.
  void write_last_to(const Plane& code, bool stream) {
    iterations_.back().code = iterations_.back().point = code;
    iterations_.back().stream = stream;
  }

 private:
  // One iteration's rows: z_k, the point y_k extrapolated from it, and the residual that it started from.
  struct Iteration {
    Plane code, point, residual;
    bool stream = false;
    int codes_done = 0;
    SynthesisRows residuals;
  };

  void step(int k, int begin, int end) {
    const Iteration& it = iterations_[k];
    const Iteration& before = iterations_[k - 1];
    AnalysisEpilogue e;
    if (has_point(k)) {
      advance_codes(k - 1, end);  // The rows that the step starts from.
      e.base = before.point;
    }
    e.shrink = solve_.options.nonneg ? Shrink::positive : Shrink::both;
    e.threshold = threshold_->values;
    e.threshold_map = threshold_->map;
    e.divide = divisor_->divides();
    e.divisor = divisor_->values;
    e.divisor_map = divisor_->map;
    e.code = it.code;
    e.stream = it.stream;
    if (it.point.base != it.code.base) {
      e.beta = static_cast<float>(solve_.options.weights[k - 1]);
      e.previous = before.code;
      e.point = it.point;
    }
    solve_.kernels.analysis({s_, solve_.dictionary.view(), image_of(k), zeros_, e, combined_}, begin, end);
  }

  const Solve& solve_;
  const Shape& s_;
  const int block_;
  const float* zeros_ = nullptr;
  float* combined_ = nullptr;
  Plane image_, mask_, masked_image_, products_;
  std::vector<Iteration> iterations_;
  Strided z0_;
  const Penalty* threshold_ = nullptr;
  const Penalty* divisor_ = nullptr;
};

}  // namespace csc

// csc_native::synthesis, analysis, correlation: one pass of a stem's kernels over tensors, of which the
// ops csc::residual, csc::fista_step and their backwards are made.

#include "isa.h"
#include "tensors.h"
#include "workspace.h"

namespace csc {
namespace {

constexpr int kBlockRows = 4;

// What every pass over a sample needs.
struct Pass {
  Shape s;
  const Kernels& kernels;
  Widths widths;
  DictionaryPack pack;

  Pass(const Shape& shape, const Tensor& dictionary, double scale, bool pairs)
      : s(shape),
        kernels(chosen_kernels()),
        widths(s, kernels.lanes),
        pack(sample(dictionary, 0), dictionary.stride(0), static_cast<float>(scale), s, widths, kernels, pairs) {}

  int64_t tasks() const { return std::min<int64_t>(s.batch, torch::stable::get_num_threads()); }

  // Calls visit(n, state) for every sample, with one state per task.
  template <typename State, typename Visit>
  void each_sample(std::vector<std::unique_ptr<State>>& states, const Visit& visit) const {
    const int64_t count = tasks();
    states.resize(count);
    parallel_tasks(count, [&](int64_t task) {
      states[task] = std::make_unique<State>(*this);
      for (int64_t n = s.batch * task / count; n < s.batch * (task + 1) / count; ++n) visit(n, *states[task]);
    });
  }
};

struct Planes {
  Pool pool;
  const float* zeros;
  Plane image, mask, result, codes, base, previous, point, products;
  std::vector<double> sums;
  float* combined;

  explicit Planes(const Pass& pass)
      : pool(pass.s, pass.widths), zeros(pool.zero_row()), combined(pool.combined(pass.pack.view(), kPairsAtATime)) {}
};

// result = mask * (x - A z); x counts as zero where it is not given.
void synthesis(Tensor z, Tensor dictionary, std::vector<int64_t> stride, std::vector<int64_t> pads, bool pairs,
               std::optional<Tensor> x, std::optional<Tensor> mask, Tensor result) {
  const Pass pass(shape_of(result.size(0), result.size(1), result.size(2), result.size(3), dictionary, stride, pads),
                  dictionary, 1.0, pairs);
  const Shape& s = pass.s;
  if (s.batch == 0) return;
  std::vector<std::unique_ptr<Planes>> states;
  pass.each_sample(states, [&](int64_t n, Planes& p) {
    if (!p.result) {
      p.codes = p.pool.codes(s.code_height);
      p.result = p.pool.image(s.height);
      p.products = p.pool.products(pass.pack.view(), pass.kernels);
      if (x) p.image = p.pool.image(s.height);
      if (mask) p.mask = p.pool.image(s.height);
    }
    pass.kernels.read_codes(sample(z, n), {}, p.codes, s, 0, s.code_height);
    if (x) read_image(sample(*x, n), p.image, s, pass.widths);
    if (mask) read_image(sample(*mask, n), p.mask, s, pass.widths);
    SynthesisEpilogue e;
    e.image = p.image;
    e.mask = p.mask;
    e.residual = p.result;
    SynthesisRows rows;
    pass.kernels.synthesis({s, pass.pack.view(), p.codes, p.zeros, e, p.products}, rows, s.height);
    write_image(p.result, 1.0f, sample(result, n), s, pass.widths);
  });
}

// code = shrink(base + scale A' image, threshold) / divisor, without threshold base + scale A' image, and
// point = code + beta (code - previous).
void analysis(Tensor image, Tensor dictionary, std::vector<int64_t> stride, std::vector<int64_t> pads, bool pairs,
              double scale, std::optional<Tensor> base, std::optional<Tensor> threshold, std::optional<Tensor> divisor,
              bool nonneg, std::optional<Tensor> previous, double beta, Tensor code, std::optional<Tensor> point) {
  const Pass pass(shape_of(image.size(0), image.size(1), image.size(2), image.size(3), dictionary, stride, pads),
                  dictionary, scale, pairs);
  const Shape& s = pass.s;
  if (s.batch == 0) return;
  std::vector<std::unique_ptr<Planes>> states;
  pass.each_sample(states, [&](int64_t n, Planes& p) {
    if (!p.image) {
      p.image = p.pool.image(s.height);
      p.codes = p.pool.codes(kBlockRows);
      if (base) p.base = p.pool.codes(kBlockRows);
      if (point) {
        p.previous = p.pool.codes(kBlockRows);
        p.point = p.pool.codes(kBlockRows);
      }
    }
    read_image(sample(image, n), p.image, s, pass.widths);
    const Penalty thresholds(threshold, n), divisors(divisor, n);
    AnalysisEpilogue e;
    e.base = p.base;
    if (threshold) e.shrink = nonneg ? Shrink::positive : Shrink::both;
    e.threshold = thresholds.values;
    e.threshold_map = thresholds.map;
    e.divide = divisor.has_value();
    e.divisor = divisors.values;
    e.divisor_map = divisors.map;
    e.code = p.codes;
    e.beta = static_cast<float>(beta);
    e.previous = p.previous;
    e.point = p.point;
    for (int i = 0; i < s.code_height; i += kBlockRows) {
      const int end = std::min(i + kBlockRows, s.code_height);
      if (base) pass.kernels.read_codes(sample(*base, n), {}, p.base, s, i, end);
      if (point) pass.kernels.read_codes(sample(*previous, n), {}, p.previous, s, i, end);
      pass.kernels.analysis({s, pass.pack.view(), p.image, p.zeros, e, p.combined}, i, end);
      pass.kernels.write_codes(p.codes, sample(code, n), s, i, end, false);
      if (point) pass.kernels.write_codes(p.point, sample(*point, n), s, i, end, false);
    }
  });
}

// result (K, M, kH, kW), float32, contiguous, zeros: += the gradient of <A' image, code> in the dictionary.
void correlation(Tensor image, Tensor code, Tensor dictionary, std::vector<int64_t> stride, std::vector<int64_t> pads,
                 bool pairs, Tensor result) {
  const Pass pass(shape_of(image.size(0), image.size(1), image.size(2), image.size(3), dictionary, stride, pads),
                  dictionary, 1.0, pairs);
  const Shape& s = pass.s;
  if (s.batch == 0) return;
  const int room = std::min((s.code_height + 1) / 2, kPairsToCorrelate);
  std::vector<std::unique_ptr<Planes>> states;
  pass.each_sample(states, [&](int64_t n, Planes& p) {
    if (!p.image) {
      p.image = p.pool.image(s.height);
      p.codes = p.pool.codes(s.code_height);
      p.sums.resize(pass.pack.sums());
      p.combined = p.pool.combined(pass.pack.view(), room, true);
    }
    read_image(sample(image, n), p.image, s, pass.widths);
    pass.kernels.read_codes(sample(code, n), {}, p.codes, s, 0, s.code_height);
    pass.kernels.correlation({s, pass.pack.view(), p.image, p.codes, p.zeros, p.sums.data(), p.combined, room}, 0,
                             s.code_height);
  });
  std::vector<std::vector<float>> parts;
  for (const auto& state : states) parts.emplace_back(state->sums.begin(), state->sums.end());
  if (!add_finite(pass.pack, parts, 1.0f, result)) correlation(image, code, dictionary, stride, pads, false, result);
}

}  // namespace
}  // namespace csc

STABLE_TORCH_LIBRARY_IMPL(csc_native, CPU, m) {
  m.impl("synthesis", TORCH_BOX(&csc::synthesis));
  m.impl("analysis", TORCH_BOX(&csc::analysis));
  m.impl("correlation", TORCH_BOX(&csc::correlation));
}

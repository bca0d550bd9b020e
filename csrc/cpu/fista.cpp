// csc_native::fista: the whole solve of a stem: x is read once and z written once, whatever n_iter is.
//
// An image is split into bands, whose borders are computed by both sides, only where there are fewer images than
// threads.

#include "iterates.h"

namespace csc {
namespace {

// Codes of more bytes than this are written around the caches: no second-level cache holds as many, but should hold the
// rows that wait to be written, where they need not wait.
constexpr int64_t kStreamedBytes = 8 << 20, kWaitingBytes = 256 << 10, kLineBytes = 64;

void fista(Tensor x, Tensor dictionary, Tensor threshold, std::optional<Tensor> divisor, double step_size,
           std::optional<Tensor> z0, std::optional<Tensor> mask, std::vector<int64_t> stride, std::vector<int64_t> pads,
           bool pairs, bool nonneg, bool gradient_at_code, std::vector<double> weights, Tensor z) {
  const Shape s = shape_of(x.size(0), x.size(1), x.size(2), x.size(3), dictionary, stride, pads);
  if (s.batch == 0) return;
  const Kernels& kernels = chosen_kernels();
  const Widths widths(s, kernels.lanes);
  const DictionaryPack pack(sample(dictionary, 0), dictionary.stride(0), static_cast<float>(step_size), s, widths,
                            kernels, pairs);
  const SolveOptions options{nonneg, gradient_at_code, weights};
  const Solve solve{s, widths, pack, options, kernels, z0.has_value(), mask.has_value()};
  const int n_iter = options.n_iter();
  const bool direct = has_rows(sample(z, 0), s.code_width);
  const bool whole = s.code_width % (pack.view().tiles ? widths.together : kernels.lanes) == 0;
  const bool large = int64_t{4} * s.batch * s.atoms * s.code_height * s.code_width > kStreamedBytes;
  const bool vectors = (direct ? s.code_width : s.atoms) % kernels.lanes == 0;
  const bool around = large && vectors && is_aligned(z, kernels.lanes);
  // Rows of codes computed together: enough of them for the blocks of registers that long vectors have.
  const int block_rows = std::max(4, kernels.lanes / 2);
  // Vectors that are whole cache lines leave the registers so, of the usual epilogue or on the way to channels_last;
  // others wait until their rows are complete, as do rows beyond which vectors, or tiles of two, would be stored.
  const bool usual = nonneg && !divisor && threshold.size(2) == 1 && threshold.size(3) == 1;
  const bool lines = around && kernels.lanes * int64_t{4} >= kLineBytes && ((whole && usual) || !direct);
  const bool fits = int64_t{4} * block_rows * s.atoms * widths.code <= kWaitingBytes;
  const bool wait = direct && (!whole || (around && !lines && fits));

  // As many bands as give every thread work, none of fewer rows than its borders.
  const int threads = static_cast<int>(torch::stable::get_num_threads());
  const int most = std::max(1, s.code_height / std::max(8, 2 * s.reach_height() * n_iter));
  const int bands = std::clamp(s.batch >= 2 * threads ? 1 : (2 * threads + s.batch - 1) / s.batch, 1, most);
  const int64_t pieces = static_cast<int64_t>(s.batch) * bands;
  Pieces queue(pieces);
  queue.share([&](int64_t) {
    Pool pool(s, widths);
    // Ahead by the reach of a gradient step, of which the first block of a band sees both sides.
    Iterates iterates(solve, pool, block_rows, direct ? n_iter - 1 : n_iter, [&](int) { return 2 * s.reach_height(); });
    const Plane waiting = wait ? pool.codes(block_rows) : Plane{};
    for (int64_t piece; (piece = queue.take()) < pieces;) {
      const int64_t n = piece / bands;
      const int band = static_cast<int>(piece % bands);
      const int begin = whole_pairs(s, s.code_height * band / bands);
      const int end = whole_pairs(s, s.code_height * (band + 1) / bands);
      const Penalty thresholds(threshold, n), divisors(divisor, n);
      iterates.start(sample(x, n), z0 ? sample(*z0, n) : Strided{}, mask ? sample(*mask, n) : Strided{}, thresholds,
                     divisors, begin);
      const Strided to = sample(z, n);
      if (direct) iterates.write_last_to(wait ? waiting : tensor_plane(to), lines);
      for (int row = begin; row < end; row += block_rows) {
        const int next = std::min(row + block_rows, end);
        iterates.advance_codes(n_iter, next);
        if (wait)
          kernels.copy_codes(waiting, tensor_plane(to), s, row, next, vectors ? around : large);
        else if (!direct)
          kernels.write_codes(iterates.code(n_iter), to, s, row, next, lines);
      }
    }
    if (large) kernels.streamed();
  });
}

}  // namespace
}  // namespace csc

STABLE_TORCH_LIBRARY_IMPL(csc_native, CPU, m) { m.impl("fista", TORCH_BOX(&csc::fista)); }

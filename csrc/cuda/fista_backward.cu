// Gradients of a stem's solve without momentum, from x, z and dL/dz alone: the iterates and residuals of a tile are
// computed again on chip, then followed backwards.
//
// With G_k = dL/dz_k on the support of z_k, divided by 1 + t mu, and image_k = -mask A G_k:
//
//   dL/dz_(k-1) = G_k + t A' image_k     dL/dx = -t sum image_k
//   dL/dD / t = sum correlation(r_k, G_k) + correlation(image_k, z_(k-1))
//   dL/dlmbda = -t sum sign(z_k) G_k     dL/dmu = -t sum z_k G_k
//
// A tile adds to the sums what its own codes contribute, and writes dL/dx at the pixels whose last code it owns.

#include "launch.h"
#include "stem.cuh"

namespace csc::cuda {
namespace {

template <typename P>
class Reverse : public Stem<P> {
 public:
  using Element = typename P::Element;
  using Base = Stem<P>;
  using Base::a_;
  using Base::l_;
  using Base::lane_;
  using Base::s_;
  using Base::shared_;
  using Base::warp_;

  __device__ Reverse(const SolveBackwardArguments& b, const StemLayout& layout, unsigned char* shared)
      : Base(b.solve, layout, shared),
        b_(b),
        t_(load(b.solve.step_size, 0, 0, 0, 0)),
        halo_(backward_halo(b.solve.n_iter, b.solve.start.data)),
        first_(b.solve.start.data ? 0 : 1),
        gradient_(this->code_buffer(0)),
        picture_(this->image_buffer(2)),
        total_(this->image_buffer(3 + b.solve.n_iter).get()),
        sums_(shared + layout.sums) {}

  __device__ void run() {
    this->load_dictionary();
    for (int e = threadIdx.x; e < l_.atoms16 * l_.taps16; e += kStemThreads) sums_[e] = 0;
    this->each_tile(halo_, [&](int64_t tile, const Place& at, Shared<Element> x) {
      iterate(at, x);
      follow(at, tile);
    });
    write_sums();
  }

 private:
  // z_k for k < n, and the residual that step k starts from.
  __device__ Shared<Element> code(int k) const { return this->code_buffer(1 + k - first_); }
  __device__ Shared<Element> residual(int k) const { return this->image_buffer(2 + k); }

  // How far around the tile z_k is computed.
  __device__ int extent(int k) const { return max(2 * (a_.n_iter - 1) - k, 1); }

  __device__ void iterate(const Place& at, Shared<Element> x) {
    if (first_ == 0) {
      this->each_code(at, this->around(at, extent(0)), [&](int k, int i, int j, int index, bool inside) {
        code(0)[index] = from_float<Element>(inside ? load<Element>(a_.start, at.n, k, i, j) : 0.0f);
      });
      __syncthreads();
    }
    for (int step = 1; step <= a_.n_iter; ++step) {
      const Region codes = this->around(at, step < a_.n_iter ? extent(step) : 0);
      if (step > first_) {
        residual_of(at, x, step, this->around(at, extent(step - 1)), this->window(codes));
      } else if (a_.mask.data) {
        this->mask_image(at, x, residual(step));
      } else {
        for (int e = threadIdx.x; e < l_.image_size; e += kStemThreads) residual(step)[e] = x[e];
      }
      __syncthreads();
      if (step == a_.n_iter) return;
      this->analysis(at, residual(step), codes, false, [&](int k, int i, int j, int index, bool inside, float sum) {
        float value = 0;
        if (inside) {
          value = t_ * sum;
          if (step > first_) value += to_float(code(step - 1)[index]);
          value = prox(value, t_, a_.lmbda, a_.mu, a_.nonneg, at.n, k, i, j);
        }
        code(step)[index] = from_float<Element>(value);
      });
      __syncthreads();
    }
  }

  __device__ void residual_of(const Place& at, Shared<Element> x, int step, const Region& valid, const Region& pixels) {
    this->synthesis(at, code(step - 1), valid, pixels, [&](int m, int h, int w, int index, float sum) {
      float value = 0;
      if (this->in_image(h, w)) {
        value = to_float(x[index]) - sum;
        if (a_.mask.data) value *= load<Element>(a_.mask, at.n, m, h, w);
      }
      residual(step)[index] = from_float<Element>(value);
    });
  }

  __device__ void follow(const Place& at, int64_t tile) {
    for (int e = threadIdx.x; e < l_.image_size; e += kStemThreads) total_[e] = 0;
    if (b_.penalty_partials) {
      float* sums = b_.penalty_partials + tile * 2 * s_.atoms;
      for (int e = threadIdx.x; e < 2 * s_.atoms; e += kStemThreads) store_global(sums + e, 0.0f);
    }
    for (int step = a_.n_iter; step >= 1; --step) {
      const Region codes = this->around(at, step);
      support(at, step, codes);
      __syncthreads();
      if (b_.penalty_partials) add_penalties(at, step, tile);
      if (b_.partials) correlate(at, residual(step), gradient_);
      const bool has_code = step > first_;
      if (!has_code && !b_.grad_x.data) break;
      picture_of(at, codes, this->window(this->around(at, step - 1)));
      __syncthreads();
      if (!has_code) break;
      if (b_.partials) correlate(at, picture_, code(step - 1));
      this->analysis(at, picture_, this->around(at, step - 1), false,
                     [&](int, int, int, int index, bool inside, float sum) {
                       const float value = inside ? to_float(gradient_[index]) + t_ * sum : 0.0f;
                       gradient_[index] = from_float<Element>(value);
                     });
      // No barrier: what comes next visits the same region, whose lines belong to the same warps.
    }
    write_gradients(at);
  }

  // z_k, k <= n.
  __device__ float code_at(const Place& at, int step, int k, int i, int j, int index) const {
    return step < a_.n_iter ? to_float(code(step)[index]) : load<Element>(a_.z, at.n, k, i, j);
  }

  // G_k in place of dL/dz_k.
  __device__ void support(const Place& at, int step, const Region& codes) {
    this->each_code(at, codes, [&](int k, int i, int j, int index, bool inside) {
      float value = 0;
      if (inside && code_at(at, step, k, i, j, index) != 0) {
        value = step < a_.n_iter ? to_float(gradient_[index]) : load<Element>(b_.grad, at.n, k, i, j);
        if (divides(a_.mu)) value /= 1 + t_ * load(a_.mu, at.n, k, i, j);
      }
      gradient_[index] = from_float<Element>(value);
    });
  }

  // image_k, and its share of dL/dx.
  __device__ void picture_of(const Place& at, const Region& codes, const Region& pixels) {
    this->synthesis(at, gradient_, codes, pixels, [&](int m, int h, int w, int index, float sum) {
      float value = 0;
      if (this->in_image(h, w)) {
        value = -sum;
        if (a_.mask.data) value *= load<Element>(a_.mask, at.n, m, h, w);
      }
      picture_[index] = from_float<Element>(value);
      total_[index] += value;
    });
  }

  // sums += the products of a code with the windows of an image, over the codes that the tile owns. Warps take tap
  // blocks and, where there are more warps, shares of the lines; shares are added one after the other.
  __device__ void correlate(const Place& at, Shared<Element> image, Shared<Element> code) {
    constexpr int kAtomBlocks = 4;
    const Shared<Element> windows(shared_ + l_.scratch + warp_ * l_.scratch_bytes);
    const Shared<float> tile((windows + 16 * 24).get());
    const int tap_blocks = l_.taps16 / 16, groups = (l_.atoms16 / 16 + kAtomBlocks - 1) / kAtomBlocks;
    const int units = tap_blocks * groups;
    const int shares = units < kStemWarps ? kStemWarps / units : 1;
    const int first = at.column + (at.owned.columns.begin - at.column) / 16 * 16;
    const int across = (at.owned.columns.end - first + 15) / 16;
    const int lines = (at.owned.rows.end - at.owned.rows.begin) * across;
    for (int begin = 0; begin < units; begin += kStemWarps / shares) {
      const int unit = begin + warp_ / shares, share = warp_ % shares;
      const bool works = unit < units && warp_ / shares < kStemWarps / shares;
      const int tap = unit / groups * 16, atom = unit % groups * kAtomBlocks * 16;
      typename P::Sums sums[kAtomBlocks];
#pragma unroll
      for (int b = 0; b < kAtomBlocks; ++b) sums[b].clear();
      for (int line = share; works && line < lines; line += shares) {
        const int i = at.owned.rows.begin + line / across, j = first + line % across * 16;
        this->unfold(at, image, at.owned, i, j, tap, 16, windows, 24);
        __syncwarp();
        const Shared<Element> codes = code + this->code_index(at, i, j);
#pragma unroll
        for (int b = 0; b < kAtomBlocks; ++b)
          if (atom + 16 * b < l_.atoms16) sums[b].multiply_outer(codes + (atom + 16 * b), l_.atom_pitch, windows, 24);
        __syncwarp();
      }
      for (int turn = 0; turn < shares; ++turn) {
        if (works && turn == share) {
#pragma unroll
          for (int b = 0; b < kAtomBlocks; ++b) {
            if (atom + 16 * b < l_.atoms16) {
              sums[b].store(tile, kTilePitch);
              __syncwarp();
              for (int e = lane_; e < 256; e += 32)
                sums_[(atom + 16 * b + e / 16) * l_.taps16 + tap + e % 16] += tile[e / 16 * kTilePitch + e % 16];
              __syncwarp();
            }
          }
        }
        __syncthreads();
      }
    }
  }

  // A warp takes an atom at a time; its lanes' sums are added in order.
  __device__ void add_penalties(const Place& at, int step, int64_t tile) {
    float* sums = b_.penalty_partials + tile * 2 * s_.atoms;
    const int columns = at.owned.columns.end - at.owned.columns.begin;
    const int count = (at.owned.rows.end - at.owned.rows.begin) * columns;
    const Shared<float> lanes(shared_ + l_.scratch + warp_ * l_.scratch_bytes);
    for (int k = warp_; k < s_.atoms; k += kStemWarps) {
      float sign = 0, product = 0;
      for (int e = lane_; e < count; e += 32) {
        const int i = at.owned.rows.begin + e / columns, j = at.owned.columns.begin + e % columns;
        const int index = this->code_index(at, i, j) + k;
        const float z = code_at(at, step, k, i, j, index), g = to_float(gradient_[index]);
        sign += z > 0 ? g : z < 0 ? -g : z * g;
        product += z * g;
      }
      lanes[lane_] = sign;
      lanes[32 + lane_] = product;
      __syncwarp();
      if (lane_ < 2) {
        float sum = 0;
        for (int i = 0; i < 32; ++i) sum += lanes[32 * lane_ + i];
        float* to = sums + lane_ * s_.atoms + k;
        store_global(to, load_global(to) + sum);
      }
      __syncwarp();
    }
  }

  // Pixels [begin, end) whose last code, (p + pad) / stride, the tile owns.
  __device__ static Span pixels_owned(const Span& codes, int code_size, int stride, int pad, int size) {
    return {codes.begin == 0 ? 0 : min(max(codes.begin * stride - pad, 0), size),
            codes.end == code_size ? size : min(max(codes.end * stride - pad, 0), size)};
  }

  __device__ void write_gradients(const Place& at) {
    if (b_.grad_x.data) {
      const Span rows = pixels_owned(at.owned.rows, s_.code_height, s_.stride_height, s_.top, s_.height);
      const Span columns = pixels_owned(at.owned.columns, s_.code_width, s_.stride_width, s_.left, s_.width);
      const Region held = this->window(this->around(at, halo_));
      const int width = columns.end - columns.begin, count = (rows.end - rows.begin) * width;
      for (int e = threadIdx.x; e < s_.channels * count; e += kStemThreads) {
        const int m = e / count, h = rows.begin + e % count / width, w = columns.begin + e % count % width;
        // Pixels that no code reaches lie beyond the buffers.
        const float value = held.has(h, w) ? -t_ * total_[this->image_index(at, m, h, w)] : 0.0f;
        store<Element>(b_.grad_x, at.n, m, h, w, value);
      }
    }
    if (b_.grad_start.data) {
      this->each_code(at, at.owned, [&](int k, int i, int j, int index, bool inside) {
        if (inside) store<Element>(b_.grad_start, at.n, k, i, j, to_float(gradient_[index]));
      });
    }
  }

  __device__ void write_sums() {
    if (!b_.partials) return;
    float* to = b_.partials + static_cast<int64_t>(blockIdx.x) * s_.atoms * l_.taps;
    for (int e = threadIdx.x; e < s_.atoms * l_.taps; e += kStemThreads)
      store_global(to + e, static_cast<float>(sums_[e / l_.taps * l_.taps16 + e % l_.taps]));
  }

  const SolveBackwardArguments& b_;
  const float t_;
  const int halo_;
  const int first_;  // The first code that is not zero by definition: z_0 where there is one, else z_1.
  const Shared<Element> gradient_, picture_;
  const Shared<float> total_, sums_;
};

template <typename P>
__global__ void __launch_bounds__(kStemThreads, 1)
    fista_backward_kernel(const __grid_constant__ SolveBackwardArguments b) {
  const SolveArguments& a = b.solve;
  const StemLayout layout =
      backward_layout(a.shape, a.tile_rows, a.tile_columns, a.n_iter, a.start.data, sizeof(typename P::Element));
  Reverse<P>(b, layout, dynamic_shared()).run();
}

}  // namespace

void launch_fista_backward(const SolveBackwardArguments& b, Product product, void* stream) {
  const SolveArguments& a = b.solve;
  with_product(product, [&](auto policy) {
    using P = decltype(policy);
    const StemLayout layout =
        backward_layout(a.shape, a.tile_rows, a.tile_columns, a.n_iter, a.start.data, sizeof(typename P::Element));
    launch(fista_backward_kernel<P>, dim3(a.blocks), kStemThreads, layout.bytes, stream, b);
  });
}

}  // namespace csc::cuda

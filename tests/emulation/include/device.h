// A CUDA device on the CPU: one block at a time, its threads as fibers, every access to memory watched.
//
// Threads run until they wait; a barrier that not all reach, different barriers at once, two threads that touch one
// shared word without a barrier between (one of them writing), a word of a tensor that one thread or block writes and
// another writes or reads, shared memory read before it is written, and addresses outside the tensors of a launch are
// errors. Blocks run in random order, shared memory starts as NaN.

#pragma once

#include <ucontext.h>

#include <cstdint>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace emulation {

constexpr int kWarp = 32;
constexpr int kMostShared = 227 * 1024;  // Of a block, the most that any device has.

// The tensors of the call, for bounds and for traffic.
struct Range {
  std::string name;
  const char* begin = nullptr;
  const char* end = nullptr;
  bool writable = false;
  int64_t loaded = 0, stored = 0;  // Bytes.
};

struct Device {
  std::vector<Range> ranges;
  int64_t fused_products = 0;  // Multiplications of all matrix products, wmma's and plain.
  int shared_limit = kMostShared;
  uint64_t seed = 0;
  int mutant = 0;  // Of the kernels broken on purpose, the one that runs.
};

extern Device device;
extern unsigned char shared_memory[kMostShared];

struct Site {
  const char* file;
  int line;
};

[[noreturn]] void fail(const std::string& message);

// One of the threads of the block that runs.
struct Thread {
  int index = 0;
  dim3 thread_index;
  uint32_t warp_epoch = 0;  // Warp barriers passed since the last block barrier.
  ucontext_t context;
  std::vector<std::function<void()>> copies;  // Asynchronous, not yet waited for: newest last.
  std::vector<size_t> commits;                // How many copies each group holds.
  enum class State { running, block, warp, done } state = State::running;
  Site site{};
  void* fake_stack = nullptr;
};

Thread& current();
extern dim3 block_index, block_size, grid_size;

void block_barrier(Site site);
// Unless it orders memory, lanes wait for each other and may still race: a tensor core's instruction is no fence.
void warp_barrier(Site site, bool orders_memory = true);
// What the lanes of a warp leave for each other: 4096 bytes each, two places in turn so that one barrier suffices.
char* warp_exchange(int lane);

void global_access(const void* address, int bytes, bool write);
// Does nothing where the address is not in shared memory.
void shared_access(const void* address, int bytes, bool write);
void shared_bounds(const void* address, int bytes);

void run(dim3 grid, int threads, int shared_bytes, const std::function<void()>& kernel);

}  // namespace emulation

#define threadIdx (emulation::current().thread_index)
#define blockIdx (emulation::block_index)
#define blockDim (emulation::block_size)
#define gridDim (emulation::grid_size)
#define __syncthreads() emulation::block_barrier({__FILE__, __LINE__})
#define __syncwarp() emulation::warp_barrier({__FILE__, __LINE__})
#define __global__
#define __device__
#define __host__
#define __shared__
#define __align__(n)
#define __launch_bounds__(...)
#define __grid_constant__
#define __forceinline__ inline

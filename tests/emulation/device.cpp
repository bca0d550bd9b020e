#include "include/device.h"

#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

#ifdef CSC_SANITIZED  // What the kernels are compiled with; the emulation itself is not.
#define POISON __asan_poison_memory_region
#define UNPOISON __asan_unpoison_memory_region
#else
#define POISON(...)
#define UNPOISON(...)
#define __sanitizer_start_switch_fiber(...)
#define __sanitizer_finish_switch_fiber(...)
#endif

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <unordered_map>

namespace emulation {

Device device;
dim3 block_index, block_size, grid_size;

namespace {

constexpr size_t kStack = 256 * 1024;
constexpr int kExchange = 4096;

// Who touched two bytes of shared memory last.
struct Access {
  int thread = -1;
  uint32_t epoch = 0, warp_epoch = 0;
};
struct Cell {
  Access write, read, read_elsewhere, read_beside;  // The last, of another warp, of another lane of its warp.
  bool written = false;
};

struct Warp {
  int arrived = 0;
  uint32_t epoch = 0;
  int side = 0;
  std::vector<char> exchange = std::vector<char>(2 * kWarp * kExchange);
};

std::vector<Thread> threads;
std::vector<std::vector<char>> stacks;
std::vector<Warp> warps;
std::vector<Cell> cells(kMostShared / 2);

// Who wrote two bytes of a tensor last, in this launch.
struct Stored {
  unsigned block;
  Access access;
};
std::unordered_map<uintptr_t, Stored> stored;
std::vector<const std::function<void()>*> kernels;
ucontext_t scheduler;
Thread* running = nullptr;
uint32_t epoch = 0;
int shared_used = 0;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_size = 0;
const std::function<void()>* kernel_of_launch = nullptr;

std::string where(const Site& site) { return std::string(site.file) + ":" + std::to_string(site.line); }

void yield() {
  Thread* self = running;
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, scheduler_stack, scheduler_stack_size);
  swapcontext(&self->context, &scheduler);
  __sanitizer_finish_switch_fiber(fake, &scheduler_stack, &scheduler_stack_size);
}

void entry() {
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
  (*kernel_of_launch)();
  Thread* self = running;
  if (!self->copies.empty()) fail("a thread ended before it waited for its asynchronous copies");
  self->state = Thread::State::done;
  __sanitizer_start_switch_fiber(nullptr, scheduler_stack, scheduler_stack_size);
  swapcontext(&self->context, &scheduler);
}

void resume(Thread& thread) {
  running = &thread;
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, stacks[thread.index].data(), kStack);
  swapcontext(&scheduler, &thread.context);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
  running = nullptr;
}

bool ordered(const Access& before, const Thread& now) {
  if (before.thread < 0 || before.thread == now.index || before.epoch != epoch) return true;
  return before.thread / kWarp == now.index / kWarp && before.warp_epoch < now.warp_epoch;
}

[[noreturn]] void race(const Access& before, const Thread& now, const char* what, const std::string& place) {
  fail("race: threads " + std::to_string(before.thread) + " and " + std::to_string(now.index) + " of block " +
       std::to_string(block_index.x) + " " + what + " " + place + " without a barrier between");
}

void check_stored(const char* at, int bytes, bool write, const Range& range) {
  const unsigned block = (block_index.z * grid_size.y + block_index.y) * grid_size.x + block_index.x;
  const Thread& self = *running;
  for (uintptr_t word = reinterpret_cast<uintptr_t>(at) / 2; 2 * word < reinterpret_cast<uintptr_t>(at) + bytes;
       ++word) {
    const auto found = stored.find(word);
    if (found != stored.end()) {
      const char* what = write ? "both write" : "write and read";
      if (found->second.block != block)
        fail("race: blocks " + std::to_string(found->second.block) + " and " + std::to_string(block) + " " + what +
             " " + range.name);
      if (!ordered(found->second.access, self)) race(found->second.access, self, what, range.name);
    }
    if (write) stored[word] = {block, {self.index, epoch, self.warp_epoch}};
  }
}

void run_block(int count) {
  threads.assign(count, {});
  warps.resize((count + kWarp - 1) / kWarp);
  for (Warp& warp : warps) warp.arrived = 0, warp.epoch = 0;
  if (stacks.size() < threads.size()) stacks.resize(count, std::vector<char>(kStack));
  std::memset(shared_memory, 0xff, shared_used);
  std::fill(cells.begin(), cells.begin() + (shared_used + 1) / 2, Cell{});
  ++epoch;
  for (int i = 0; i < count; ++i) {
    Thread& t = threads[i];
    t.index = i;
    t.thread_index = {static_cast<unsigned>(i), 0, 0};
    getcontext(&t.context);
    t.context.uc_stack = {stacks[i].data(), 0, kStack};
    t.context.uc_link = nullptr;
    makecontext(&t.context, entry, 0);
  }
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::mt19937_64 random(device.seed + block_index.x);
  std::shuffle(order.begin(), order.end(), random);
  int done = 0;
  while (done < count) {
    bool progress = false;
    for (int i : order) {
      if (threads[i].state != Thread::State::running) continue;
      resume(threads[i]);
      progress = true;
      done += threads[i].state == Thread::State::done;
    }
    if (progress) continue;
    for (const Thread& t : threads)
      if (t.state == Thread::State::block || t.state == Thread::State::warp)
        fail("barrier at " + where(t.site) + " is not reached by all threads");
  }
}

void arrive(Thread::State state, Site site) {
  running->state = state;
  running->site = site;
}

}  // namespace

void fail(const std::string& message) {
  std::fprintf(stderr, "emulation: %s\n", message.c_str());
  std::_Exit(86);
}

Thread& current() { return *running; }

void block_barrier(Site site) {
  arrive(Thread::State::block, site);
  for (const Thread& t : threads) {
    if (t.state == Thread::State::done)
      fail("barrier at " + where(site) + " is not reached by all threads: one has ended");
    if (t.state == Thread::State::block && t.site.line != site.line)
      fail("threads wait at different barriers, " + where(t.site) + " and " + where(site));
    if (t.state != Thread::State::block) return yield();
  }
  ++epoch;
  for (Thread& t : threads) t.state = Thread::State::running, t.warp_epoch = 0;
}

void warp_barrier(Site site, bool orders_memory) {
  Thread* self = running;
  arrive(Thread::State::warp, site);
  const int first = self->index / kWarp * kWarp;
  const int end = std::min<int>(first + kWarp, static_cast<int>(threads.size()));
  for (int i = first; i < end; ++i) {
    const Thread& t = threads[i];
    if (t.state == Thread::State::done)
      fail("warp barrier at " + where(site) + " is not reached by all lanes: one has ended");
    if (t.state == Thread::State::warp && t.site.line != site.line)
      fail("lanes wait at different barriers, " + where(t.site) + " and " + where(site));
    if (t.state != Thread::State::warp) return yield();
  }
  for (int i = first; i < end; ++i) threads[i].state = Thread::State::running, threads[i].warp_epoch += orders_memory;
  warps[first / kWarp].side ^= 1;
}

char* warp_exchange(int lane) {
  Warp& warp = warps[running->index / kWarp];
  return warp.exchange.data() + (warp.side * kWarp + lane) * kExchange;
}

void global_access(const void* address, int bytes, bool write) {
  const char* at = static_cast<const char*>(address);
  for (Range& range : device.ranges) {
    if (at < range.begin || at + bytes > range.end) continue;
    if (write && !range.writable) fail("a store to the input " + range.name);
    (write ? range.stored : range.loaded) += bytes;
    if (reinterpret_cast<uintptr_t>(at) % bytes) fail("a misaligned access to " + range.name);
    if (range.writable) check_stored(at, bytes, write, range);
    return;
  }
  fail(std::string(write ? "a store" : "a load") + " outside every tensor of the call");
}

void shared_bounds(const void* address, int bytes) {
  const auto* at = static_cast<const unsigned char*>(address);
  if (at < shared_memory || at + bytes > shared_memory + shared_used)
    fail("shared memory byte " + std::to_string(at - shared_memory) + " of " + std::to_string(shared_used));
}

void shared_access(const void* address, int bytes, bool write) {
  shared_bounds(address, bytes);
  const size_t at = static_cast<const unsigned char*>(address) - shared_memory;
  if (at % bytes) fail("a misaligned access to shared memory");
  const Thread& self = *running;
  const Access now{self.index, epoch, self.warp_epoch};
  for (size_t c = at / 2; c < (at + bytes + 1) / 2; ++c) {
    Cell& cell = cells[c];
    const auto place = [c] { return "shared byte " + std::to_string(2 * c); };
    if (!ordered(cell.write, self)) race(cell.write, self, write ? "both write" : "write and read", place());
    if (write) {
      for (const Access* read : {&cell.read, &cell.read_elsewhere, &cell.read_beside})
        if (!ordered(*read, self)) race(*read, self, "read and write", place());
      cell.write = now;
      cell.written = true;
      continue;
    }
    if (!cell.written) fail("shared byte " + std::to_string(2 * c) + " is read before it is written");
    const Access& last = cell.read;
    if (last.thread >= 0 && last.thread != now.thread)
      (last.thread / kWarp != now.thread / kWarp ? cell.read_elsewhere : cell.read_beside) = last;
    cell.read = now;
  }
}

void run(dim3 grid, int threads_of_block, int shared_bytes, const std::function<void()>& kernel) {
  if (shared_bytes > device.shared_limit)
    fail("a launch asks for " + std::to_string(shared_bytes) + " bytes of shared memory");
  shared_used = shared_bytes;
  UNPOISON(shared_memory, kMostShared);
  POISON(shared_memory + (shared_bytes + 7) / 8 * 8, kMostShared - (shared_bytes + 7) / 8 * 8);
  grid_size = grid;
  block_size = dim3(threads_of_block);
  kernel_of_launch = &kernel;
  stored.clear();
  std::vector<dim3> blocks;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) blocks.emplace_back(x, y, z);
  std::mt19937_64 random(device.seed);
  std::shuffle(blocks.begin(), blocks.end(), random);
  for (const dim3& block : blocks) {
    block_index = block;
    run_block(threads_of_block);
  }
}

}  // namespace emulation

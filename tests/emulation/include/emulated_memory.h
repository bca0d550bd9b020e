// What csrc/cuda/memory.cuh is under emulation.

#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "device.h"
#include "mma.h"

using std::max;
using std::min;

namespace csc::cuda {

// A reference to one element that reports what is done with it.
template <typename T>
class SharedElement {
 public:
  explicit SharedElement(T* at) : at_(at) {}
  operator T() const {
    emulation::shared_access(at_, sizeof(T), false);
    return *at_;
  }
  const SharedElement& operator=(T value) const {
    emulation::shared_access(at_, sizeof(T), true);
    *at_ = value;
    return *this;
  }
  const SharedElement& operator=(const SharedElement& other) const { return *this = static_cast<T>(other); }
  const SharedElement& operator+=(T value) const { return *this = static_cast<T>(*this) + value; }
  const SharedElement& operator-=(T value) const { return *this = static_cast<T>(*this) - value; }

 private:
  T* at_;
};

template <typename T>
class Shared {
 public:
  Shared() = default;
  explicit Shared(void* data) : data_(static_cast<T*>(data)) {}
  SharedElement<T> operator[](int i) const { return SharedElement<T>(data_ + i); }
  Shared operator+(int i) const { return Shared(data_ + i); }
  T* get() const { return data_; }

 private:
  T* data_ = nullptr;
};

inline unsigned char* dynamic_shared() { return emulation::shared_memory; }

template <typename T>
T load_global(const T* from) {
  emulation::global_access(from, sizeof(T), false);
  return *from;
}

template <typename T>
void store_global(T* to, T value) {
  emulation::global_access(to, sizeof(T), true);
  *to = value;
}

// The copy happens as late as it may: when it is waited for.
inline void copy_line(void* to, const void* from) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16)
    emulation::fail("a misaligned asynchronous copy");
  emulation::current().copies.push_back([to, from] {
    emulation::global_access(from, 16, false);
    for (int i = 0; i < 16; i += 2) emulation::shared_access(static_cast<char*>(to) + i, 2, true);
    std::memcpy(to, from, 16);
  });
}

inline void copy_shared_line(void* to, const void* from) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16)
    emulation::fail("a misaligned copy");
  for (int i = 0; i < 16; i += 2) {
    emulation::shared_access(static_cast<const char*>(from) + i, 2, false);
    emulation::shared_access(static_cast<char*>(to) + i, 2, true);
  }
  std::memcpy(to, from, 16);
}

template <typename Arguments>
bool has_code(void (*)(Arguments)) {
  return true;
}

template <typename Arguments>
void launch(void (*kernel)(Arguments), dim3 grid, int threads, int shared_bytes, void*, const Arguments& arguments) {
  emulation::run(grid, threads, shared_bytes, [&] { kernel(arguments); });
}

}  // namespace csc::cuda

inline void __pipeline_commit() {
  auto& t = emulation::current();
  size_t grouped = 0;
  for (size_t count : t.commits) grouped += count;
  t.commits.push_back(t.copies.size() - grouped);
}

inline void __pipeline_wait_prior(size_t newest) {
  auto& t = emulation::current();
  while (t.commits.size() > newest) {
    for (size_t i = 0; i < t.commits.front(); ++i) t.copies[i]();
    t.copies.erase(t.copies.begin(), t.copies.begin() + static_cast<long>(t.commits.front()));
    t.commits.erase(t.commits.begin());
  }
}

// A process that stands for a GPU: it reads calls from its input, runs csrc/cuda on them and writes the results.
//
// A call is lines "key values..." up to "end", then the bytes of its tensors. Each tensor lies in an allocation of
// exactly its own span, so that AddressSanitizer sees whatever touches another address.

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <string>

#include "csrc/cuda/calls.h"
#include "include/device.h"

// Here, where AddressSanitizer guards what lies beyond it: device.cpp is compiled without.
alignas(128) unsigned char emulation::shared_memory[emulation::kMostShared];

namespace planted {
void run(const std::string& bug, float* data);
}

namespace {

using csc::cuda::Element;
using csc::cuda::Ints;

// The bytes of one tensor, at the same place within 64 bytes as the caller's; what lies around them is poisoned.
class Storage {
 public:
  Storage(int64_t bytes, int64_t misplaced) : bytes_(bytes), size_((misplaced + bytes + 63) / 64 * 64 + 64) {
    memory_ = static_cast<char*>(std::aligned_alloc(64, size_));
    data = memory_ + misplaced;
    std::cin.read(data, bytes);
    ASAN_POISON_MEMORY_REGION(memory_, misplaced / 8 * 8);
    const int64_t end = (misplaced + bytes + 7) / 8 * 8;
    ASAN_POISON_MEMORY_REGION(memory_ + end, size_ - end);
  }
  Storage(const Storage&) = delete;
  ~Storage() {
    ASAN_UNPOISON_MEMORY_REGION(memory_, size_);
    std::free(memory_);
    if (spread_) munmap(spread_, spread_bytes_);
  }

  // Moves samples that begin every `stride` bytes apart to every `far` bytes, in memory that is only reserved.
  void spread(int64_t samples, int64_t stride, int64_t far) {
    samples_ = samples, stride_ = stride, far_ = far;
    spread_bytes_ = (samples - 1) * far + bytes_;
    void* memory =
        mmap(nullptr, spread_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) emulation::fail("no address space for far samples");
    spread_ = static_cast<char*>(memory);
    for (int64_t n = 0; n < samples; ++n) std::memcpy(spread_ + n * far, data + n * stride, sample_bytes());
  }

  void gather() {
    for (int64_t n = 0; n < samples_; ++n) std::memcpy(data + n * stride_, spread_ + n * far_, sample_bytes());
  }

  char* begin() const { return spread_ ? spread_ : data; }
  int64_t bytes() const { return spread_ ? spread_bytes_ : bytes_; }
  void write() {
    gather();
    std::cout.write(data, bytes_);
  }

  char* data;

 private:
  int64_t sample_bytes() const { return bytes_ - (samples_ - 1) * stride_; }

  char *memory_, *spread_ = nullptr;
  int64_t bytes_, size_, spread_bytes_ = 0, samples_ = 0, stride_ = 0, far_ = 0;
};

class Tensor {
 public:
  std::vector<int64_t> sizes, strides;
  void* data = nullptr;
  Element kind = Element::float32;
  int64_t size(int d) const { return sizes[d]; }
  int64_t stride(int d) const { return strides[d]; }
  int64_t dim() const { return static_cast<int64_t>(sizes.size()); }
  void* data_ptr() const { return data; }
  bool is_cpu() const { return host_numbers && sizes.empty(); }
  static inline bool host_numbers = false;
  Element element() const { return kind; }
};

struct Call {
  std::string op;
  std::map<std::string, Ints> ints;
  std::map<std::string, std::vector<double>> floats;
  std::map<std::string, Tensor> tensors;
  std::vector<std::string> order;
  std::vector<std::unique_ptr<Storage>> storages;
  std::vector<bool> writable;

  const Tensor& tensor(const std::string& name) const { return tensors.at(name); }
  std::optional<Tensor> maybe(const std::string& name) const {
    const auto found = tensors.find(name);
    return found == tensors.end() ? std::nullopt : std::optional<Tensor>(found->second);
  }
  int64_t number(const std::string& name) const { return ints.at(name).at(0); }
};

std::string word(std::istream& in) {
  std::string text;
  in >> text;
  return text;
}

template <typename T>
std::vector<T> rest_of(std::istream& in) {
  std::vector<T> values;
  for (T value; in >> value;) values.push_back(value);
  return values;
}

// tensor name element writable bytes misplaced dim sizes... strides...
struct Announced {
  std::string name;
  int64_t bytes, misplaced;
  bool writable;
};

bool read(Call& call) {
  auto& device = emulation::device;
  device.ranges.clear();
  device.fused_products = 0;
  std::vector<Announced> announced;
  std::string line;
  while (std::getline(std::cin, line) && line != "end") {
    std::istringstream in(line);
    const std::string key = word(in);
    if (key == "op") {
      call.op = word(in);
    } else if (key == "shared") {
      in >> device.shared_limit;
    } else if (key == "seed") {
      in >> device.seed;
    } else if (key == "int") {
      const std::string name = word(in);
      call.ints[name] = rest_of<int64_t>(in);
    } else if (key == "float") {
      const std::string name = word(in);
      call.floats[name] = rest_of<double>(in);
    } else if (key == "tensor") {
      Announced a;
      int element, dim;
      in >> a.name >> element >> a.writable >> a.bytes >> a.misplaced >> dim;
      Tensor t;
      t.kind = static_cast<Element>(element);
      t.sizes.resize(dim), t.strides.resize(dim);
      for (auto& size : t.sizes) in >> size;
      for (auto& stride : t.strides) in >> stride;
      call.tensors[a.name] = t;
      announced.push_back(a);
    }
  }
  Tensor::host_numbers = call.ints.count("device_numbers") && !call.number("device_numbers");
  device.mutant = call.ints.count("mutant") ? static_cast<int>(call.number("mutant")) : 0;
  const int64_t stretch = call.ints.count("stretch") ? call.number("stretch") : 0;
  for (const Announced& a : announced) {
    call.storages.push_back(std::make_unique<Storage>(a.bytes, a.misplaced));
    call.writable.push_back(a.writable);
    Storage& storage = *call.storages.back();
    Tensor& t = call.tensors[a.name];
    if (stretch && t.dim() == 4 && t.sizes[0] > 1) {
      const int64_t size = csc::cuda::size_of(t.kind), far = (t.strides[0] + stretch) * size;
      storage.spread(t.sizes[0], t.strides[0] * size, far);
      t.strides[0] = far / size;
    }
    t.data = storage.begin();
    device.ranges.push_back({a.name, storage.begin(), storage.begin() + storage.bytes(), a.writable});
  }
  return static_cast<bool>(std::cin);
}

void run(const Call& c) {
  const auto tensor = [&](const char* name) { return c.tensor(name); };
  const auto maybe = [&](const char* name) { return c.maybe(name); };
  const auto number = [&](const char* name) { return c.number(name); };
  const Ints stride = c.ints.count("stride") ? c.ints.at("stride") : Ints{};
  const Ints pads = c.ints.count("pads") ? c.ints.at("pads") : Ints{};
  using namespace csc::cuda;
  if (c.op == "synthesis") {
    synthesis<Tensor>(tensor("z"), tensor("dictionary"), stride, pads, c.floats.at("scale")[0], maybe("x"),
                      maybe("mask"), number("tf32"), c.ints.at("plan"), tensor("result"), nullptr);
  } else if (c.op == "analysis") {
    analysis<Tensor>(tensor("image"), tensor("dictionary"), stride, pads, tensor("scale"), maybe("base"),
                     maybe("lmbda"), maybe("mu"), number("nonneg"), maybe("previous"), c.floats.at("beta")[0],
                     number("tf32"), c.ints.at("plan"), tensor("code"), maybe("point"), nullptr);
  } else if (c.op == "correlation") {
    correlation<Tensor>(tensor("image"), tensor("code"), stride, pads, number("tf32"), tensor("partials"),
                        tensor("result"), nullptr);
  } else if (c.op == "residual_tail") {
    residual_tail<Tensor>(c.floats.at("scale")[0], maybe("x"), maybe("mask"), tensor("result"), nullptr);
  } else if (c.op == "step_tail") {
    step_tail<Tensor>(tensor("scale"), maybe("base"), maybe("lmbda"), maybe("mu"), number("nonneg"), maybe("previous"),
                      c.floats.at("beta")[0], tensor("code"), maybe("point"), nullptr);
  } else if (c.op == "fista") {
    fista<Tensor>(tensor("x"), tensor("dictionary"), tensor("lmbda"), tensor("mu"), tensor("step_size"), maybe("z0"),
                  maybe("mask"), stride, pads, number("nonneg"), number("gradient_at_code"), c.floats.at("weights"),
                  number("tf32"), c.ints.at("plan"), tensor("z"), nullptr);
  } else if (c.op == "fista_backward") {
    fista_backward<Tensor>(tensor("grad"), tensor("x"), tensor("dictionary"), tensor("lmbda"), tensor("mu"),
                           tensor("step_size"), maybe("z0"), maybe("mask"), stride, pads, number("nonneg"),
                           c.floats.at("weights"), number("tf32"), c.ints.at("plan"), tensor("z"), maybe("grad_x"),
                           maybe("grad_z0"), maybe("penalty_partials"), maybe("penalty"), maybe("partials"),
                           maybe("grad_dictionary"), nullptr);
  } else if (c.op.rfind("planted_", 0) == 0) {
    planted::run(c.op.substr(8), static_cast<float*>(tensor("data").data));
  } else {
    emulation::fail("no op " + c.op);
  }
}

void answer(const Call& call) {
  const auto& device = emulation::device;
  std::cout << "products " << device.fused_products << '\n';
  for (const auto& r : device.ranges) std::cout << "traffic " << r.name << ' ' << r.loaded << ' ' << r.stored << '\n';
  std::cout << "end\n";
  for (size_t i = 0; i < call.storages.size(); ++i)
    if (call.writable[i]) call.storages[i]->write();
  std::cout.flush();
}

}  // namespace

int main() {
  std::ios::sync_with_stdio(false);
  for (;;) {
    Call call;
    if (!read(call)) return 0;
    run(call);
    answer(call);
  }
}

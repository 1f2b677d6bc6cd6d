#include "runners/measure/memory.h"

#include "runners/measure/device.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <sys/resource.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <utility>

namespace transpool {
namespace {

std::atomic<std::int64_t> allocated{0};
std::atomic<std::int64_t> peak{0};

/// Stands in front of each tracked block: what is needed to free it.
struct alignas(64) Header {
  at::DataPtr inner;
  std::int64_t bytes;
};

void free_block(void* data) {
  auto* header = static_cast<Header*>(data) - 1;
  allocated -= header->bytes;
  const auto inner = std::move(header->inner);
  header->~Header();
}

/// The context of a block is its data, since oneDNN asks for raw memory and LibTorch would else leave oneDNN aside: what is
/// measured would not be what runs without the hook.
class CountingAllocator : public c10::Allocator {
 public:
  explicit CountingAllocator(c10::Allocator* inner) : inner_(inner) {}

  at::DataPtr allocate(std::size_t bytes) override {
    refuse_beyond_memory(bytes);
    auto inner = inner_->allocate(bytes + sizeof(Header));
    auto* header = static_cast<Header*>(inner.get());
    new (header) Header{std::move(inner), static_cast<std::int64_t>(bytes)};
    const auto now = allocated += header->bytes;
    auto highest = peak.load();
    while (now > highest && !peak.compare_exchange_weak(highest, now)) {
    }
    return {header + 1, header + 1, &free_block, at::Device(at::kCPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }

  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }

 private:
  /// LibTorch's allocator ends the process where the system refuses, so a large block is asked for beforehand.
  static void refuse_beyond_memory(std::size_t bytes) {
    constexpr std::size_t large = std::size_t{256} << 20;
    if (bytes < large) return;
    void* volatile probe = std::malloc(bytes);  // volatile, since a compiler may leave out a block that nobody uses
    TORCH_CHECK_WITH(OutOfMemoryError, probe != nullptr, "out of memory: ", bytes, " bytes were asked for at once");
    std::free(probe);
  }

  c10::Allocator* inner_;
};

using Run = std::function<std::vector<at::Tensor>()>;

MemoryUse measure_cpu(const Run& run) {
  const auto before = allocated.load();
  peak = before;
  const auto results = run();
  const auto highest = peak.load();
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return {static_cast<double>(highest), static_cast<double>(highest - before),
          static_cast<double>(highest - allocated.load()), 0, static_cast<double>(usage.ru_maxrss) * 1024};
}

MemoryUse measure_cuda(const Run& run, const at::Device& device) {
  auto* allocator = at::getDeviceAllocator(device.type());
  synchronize(device);
  allocator->emptyCache();
  allocator->resetPeakStats(device.index());
  constexpr auto aggregate = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  const auto before = allocator->getDeviceStats(device.index()).allocated_bytes[aggregate].current;
  const auto results = run();
  synchronize(device);
  const auto stats = allocator->getDeviceStats(device.index());
  const auto highest = stats.allocated_bytes[aggregate].peak;
  return {static_cast<double>(highest), static_cast<double>(highest - before),
          static_cast<double>(highest - stats.allocated_bytes[aggregate].current),
          static_cast<double>(stats.reserved_bytes[aggregate].peak), 0};
}

}  // namespace

void install_memory_hook() {
  static CountingAllocator counting(c10::GetCPUAllocator());
  if (c10::GetCPUAllocator() != &counting) c10::SetCPUAllocator(&counting, /*priority=*/100);
}

std::int64_t allocated_cpu_bytes() { return allocated; }

MemoryUse measure_memory(const Run& run, const at::Device& device) {
  return device.is_cuda() ? measure_cuda(run, device) : measure_cpu(run);
}

}  // namespace transpool

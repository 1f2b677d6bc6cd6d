#include "runners/measure/memory.h"

#include "runners/measure/device.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <sys/resource.h>

#include <atomic>
#include <cstdlib>

namespace transpool {
namespace {

std::atomic<std::int64_t> allocated{0};
std::atomic<std::int64_t> peak{0};

/// What a tracked block needs to be freed: the wrapped block and its size.
struct Block {
  at::DataPtr inner;
  std::int64_t bytes;
};

void free_block(void* context) {
  auto* block = static_cast<Block*>(context);
  allocated -= block->bytes;
  delete block;
}

class CountingAllocator : public c10::Allocator {
 public:
  explicit CountingAllocator(c10::Allocator* inner) : inner_(inner) {}

  at::DataPtr allocate(std::size_t bytes) override {
    refuse_beyond_memory(bytes);
    auto* block = new Block{inner_->allocate(bytes), static_cast<std::int64_t>(bytes)};
    const auto now = allocated += block->bytes;
    auto highest = peak.load();
    while (now > highest && !peak.compare_exchange_weak(highest, now)) {
    }
    return {block->inner.get(), block, &free_block, at::Device(at::kCPU)};
  }

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

MemoryUse measure_memory(const Run& run, const at::Device& device) {
  return device.is_cuda() ? measure_cuda(run, device) : measure_cpu(run);
}

}  // namespace transpool

#include "operators/host_kernel.h"

#include <ATen/TensorIterator.h>
#include <ATen/ops/empty.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>

namespace transpool {

bool has_avx2() {
#if defined(__x86_64__) && defined(__GNUC__)
  static const bool found = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return found;
#else
  return false;
#endif
}

void in_threads(std::int64_t count, std::int64_t grain, c10::function_ref<void(std::int64_t, std::int64_t)> task) {
  if (count == 0) return;
  // Elements whose addresses tell the parts apart, and that nobody reads or writes.
  auto numbers = at::empty({count}, at::kByte);
  const auto* const first = static_cast<const char*>(numbers.const_data_ptr());
  auto iterator = at::TensorIterator::nullary_op(numbers);
  iterator.for_each(
      [&](char** data, const std::int64_t*, std::int64_t size) { task(data[0] - first, data[0] - first + size); },
      std::max<std::int64_t>(grain, 1));
}

std::int64_t tasks_a_thread(std::int64_t numbers) { return 262144 / std::max<std::int64_t>(numbers, 1); }

void prefer_huge_pages([[maybe_unused]] const at::Tensor& tensor) {
#ifdef __linux__
  constexpr std::uintptr_t page = std::uintptr_t{2} << 20;
  const auto start = reinterpret_cast<std::uintptr_t>(tensor.data_ptr());
  const auto first = (start + page - 1) / page * page;
  const auto last = (start + tensor.nbytes()) / page * page;
  // A hint: what it cannot have, it does without.
  if (last > first + 2 * page)
    static_cast<void>(madvise(static_cast<char*>(tensor.data_ptr()) + (first - start), last - first, MADV_HUGEPAGE));
#endif
}

}  // namespace transpool

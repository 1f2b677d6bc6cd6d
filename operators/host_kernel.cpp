#include "operators/host_kernel.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

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

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/FunctionRef.h>

/// Loops over contiguous elements, compiled once for any processor and once for those with AVX2, the choice being made at
/// run time: a build for all x86 processors would else read memory at half its speed. The loop is TRANSPOOL_INLINE, and
/// called by a TRANSPOOL_AVX2 function where `has_avx2()`.
#if defined(__x86_64__) && defined(__GNUC__)
#define TRANSPOOL_AVX2 __attribute__((target("avx2,fma")))
#else
#define TRANSPOOL_AVX2
#endif
#define TRANSPOOL_INLINE inline __attribute__((always_inline))

namespace transpool {

bool has_avx2();

/// task(begin, end) for parts of 0 .. count - 1 of at least `grain`, in the threads of ATen; what it calls of ATen stays in
/// its thread. at::parallel_for knows one thread alone unless the code that calls it is compiled with OpenMP, of which a
/// program should not have two; that of ATen is.
void in_threads(std::int64_t count, std::int64_t grain, c10::function_ref<void(std::int64_t, std::int64_t)> task);

/// Tasks of so many numbers each, summed or the like, that keep a thread busy for longer than it takes to wake it: a grain.
std::int64_t tasks_a_thread(std::int64_t numbers);

/// Asks for huge pages under a large block on the CPU that is about to be written: its first touch costs a fault a page,
/// which takes longer than the writing.
void prefer_huge_pages(const at::Tensor& tensor);

}  // namespace transpool

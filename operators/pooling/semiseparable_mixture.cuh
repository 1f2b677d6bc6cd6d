#pragma once

#include "operators/pooling/launching.cuh"
#include "operators/pooling/row_access.cuh"
#include "operators/pooling/semiseparable_mixture_cuda.h"
#include "operators/pooling/warp.cuh"

#include <initializer_list>

namespace transpool {
namespace {

constexpr int rest_threads = 256;

/// How a block scans: segments of ranks, one a warp, and loads that a lane has under way. Together they fill the registers:
/// the forward scan of both sides is quicker with longer segments, all others with more of them.
template <int Warps, int Loads>
struct Shape {
  static constexpr int warps = Warps, loads = Loads, threads = Warps * lanes;
};
using Many = Shape<32, 4>;
using Long = Shape<16, 8>;

__device__ inline int valid_rows(const SemiseparableArguments& a, std::int64_t b) {
  const auto valid = a.lengths ? a.lengths[b] : a.length;
  return static_cast<int>(max(std::int64_t{0}, min(valid, a.length)));
}

__device__ inline int outputs(const SemiseparableArguments& a, std::int64_t b) {
  return min(valid_rows(a, b), static_cast<int>(a.slots));
}

template <class C>
__device__ C* part_of(void* all, std::int64_t b, std::int64_t size) {
  return static_cast<C*>(all) + b * size;
}

__device__ inline float exponential(float value) { return expf(value); }
__device__ inline double exponential(double value) { return exp(value); }

/// The same order of additions whenever it runs. One synchronisation a call: calls take turns with two buffers.
template <class C>
__device__ C sum_over_block(C value, int& turn) {
  __shared__ C sums[2][lanes];
  const int lane = threadIdx.x % lanes, warps = blockDim.x / lanes;
  value = sum_over_warp(value);
  if (lane == 0) sums[turn][threadIdx.x / lanes] = value;
  __syncthreads();
  value = sum_over_warp(lane < warps ? sums[turn][lane] : C(0));
  turn = 1 - turn;
  return value;
}

/// A sum over rows of one score after the other, each row weighing exp(-sharpness distance) at the score that has been
/// reached; apart from it those of exactly that score.
template <class C, int N>
struct Scan {
  C passed[N];  // rows of scores that lie behind
  C level[N];   // rows of the score that has been reached
  C total;      // product of the decays since `clear`
  bool moved;

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < N; ++i) passed[i] = level[i] = 0;
    total = 1;
    moved = false;
  }
  /// To the next row's score; under 0 it is the same one.
  __device__ void step(C decay) {
    if (decay < 0) return;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      passed[i] = decay * (passed[i] + level[i]);
      level[i] = 0;
    }
    total *= decay;
    moved = true;
  }
  __device__ void add(const C (&row)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) level[i] += row[i];
  }
  /// Goes on over the rows of `next`, which started from nothing.
  __device__ void then(const Scan& next) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (next.moved) passed[i] = next.passed[i] + next.total * (passed[i] + level[i]);
      level[i] = next.moved ? next.level[i] : level[i] + next.level[i];
    }
    total *= next.total;
    moved = moved || next.moved;
  }
};

/// From each warp's scan of its own segment, the state in which that segment starts; `before` is what stands before all.
template <int Warps, class C, int N>
__device__ Scan<C, N> start_of_segment(const Scan<C, N>& own, const Scan<C, N>& before, bool upward) {
  __shared__ C sums[Warps][2 * N][lanes];
  __shared__ C totals[Warps];
  const int lane = threadIdx.x % lanes, warp = threadIdx.x / lanes, warps = blockDim.x / lanes;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) {
    sums[warp][2 * i][lane] = own.passed[i];
    sums[warp][2 * i + 1][lane] = own.level[i];
  }
  if (lane == 0) totals[warp] = own.moved ? own.total : C(-1);
  __syncthreads();
  auto state = before;
  for (int other = upward ? warps - 1 : 0; other != warp; other += upward ? -1 : 1) {
    Scan<C, N> next;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      next.passed[i] = sums[other][2 * i][lane];
      next.level[i] = sums[other][2 * i + 1][lane];
    }
    next.moved = totals[other] >= 0;
    next.total = next.moved ? totals[other] : C(1);
    state.then(next);
  }
  return state;
}

/// Calls use(t, item) for t from first to last - 1, or down from it, after load(t, item) of several at once.
template <class Item, int Loads, class Load, class Use>
__device__ void walk(int first, int last, bool downward, const Load& load, const Use& use) {
  for (int begin = first; begin < last; begin += Loads) {
    Item items[Loads];
#pragma unroll
    for (int i = 0; i < Loads; ++i)
      if (begin + i < last) load(downward ? first + last - 1 - begin - i : begin + i, items[i]);
#pragma unroll
    for (int i = 0; i < Loads; ++i)
      if (begin + i < last) use(downward ? first + last - 1 - begin - i : begin + i, items[i]);
  }
}

/// The ranks first .. last - 1 of segment `index` of `segments`.
struct Segment {
  int first, last;
  __device__ Segment(int count, int segments, int index) {
    const int size = (count + segments - 1) / segments;
    first = min(count, index * size);
    last = min(count, first + size);
  }
};

/// One block a batch row and slab of columns, one warp a segment of ranks.
struct Place {
  std::int64_t b, slab;
  int lane, warp, warps, count, column;
  bool inside;
  Segment segment;

  __device__ Place(const SemiseparableArguments& a, int slabs, int columns_a_lane)
      : b(blockIdx.x / slabs),
        slab(blockIdx.x % slabs),
        lane(threadIdx.x % lanes),
        warp(threadIdx.x / lanes),
        warps(blockDim.x / lanes),
        count(outputs(a, b)),
        column((static_cast<int>(slab) * lanes + lane) * columns_a_lane),
        inside(column < a.width),
        segment(count, warps, warp) {}
};

template <class C, class T, int V>
__device__ void load_row(const T* from, C (&row)[V]) {
  const auto pack = *reinterpret_cast<const Pack<T, V>*>(from);
#pragma unroll
  for (int v = 0; v < V; ++v) row[v] = static_cast<C>(pack.element[v]);
}

template <class T, class C, int V>
__device__ void store_row(T* to, const C (&row)[V]) {
  Pack<T, V> pack;
#pragma unroll
  for (int v = 0; v < V; ++v) pack.element[v] = static_cast<T>(row[v]);
  *reinterpret_cast<Pack<T, V>*>(to) = pack;
}

inline bool aligned(const SemiseparableArguments& a, std::size_t bytes) {
  for (const void* pointer : {a.x, a.gradient, static_cast<const void*>(a.values), static_cast<const void*>(a.x_gradient)})
    if (reinterpret_cast<std::uintptr_t>(pointer) % bytes != 0) return false;
  return true;
}

/// call<T, V, Wide, two_sided>(slabs): V columns a lane where a warp scans, Wide where rows are read one by one.
template <class T, class Call>
void by_layout(const SemiseparableArguments& a, Call call) {
  constexpr int Wide = 16 / sizeof(T);
  constexpr int V = sizeof(T) == 8 ? 1 : 2;  // what shared memory holds of every warp
  const auto slabs = [&](int columns) { return static_cast<int>((a.width + lanes * columns - 1) / (lanes * columns)); };
  const bool wide = a.width % Wide == 0 && aligned(a, 16);
  if (a.two_sided && wide) call.template operator()<T, V, Wide, true>(slabs(V));
  else if (a.two_sided) call.template operator()<T, 1, 1, true>(slabs(1));
  else if (wide) call.template operator()<T, V, Wide, false>(slabs(V));
  else call.template operator()<T, 1, 1, false>(slabs(1));
}

/// The same for the rows' type.
template <class Call>
const char* by_rows(const SemiseparableArguments& a, Call call) {
  switch (a.element) {
    case Element::float64: by_layout<double>(a, call); break;
    case Element::float32: by_layout<float>(a, call); break;
    case Element::float16: by_layout<__half>(a, call); break;
    case Element::bfloat16: by_layout<__nv_bfloat16>(a, call); break;
  }
  return launch_error();
}

}  // namespace
}  // namespace transpool

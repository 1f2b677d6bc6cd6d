#pragma once

#include "operators/pooling/row_selection_cuda.h"

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>

/// Radix selection by a cluster of blocks a batch row, for kernels that go on with what it finds.
namespace transpool::selection {

namespace cg = cooperative_groups;

constexpr int threads = 1024;
constexpr int warps = threads / 32;
constexpr int most_blocks = 8;
constexpr int digit_bits = 11;  // two digits a thread
constexpr int bins = 1 << digit_bits;
constexpr unsigned all_lanes = 0xffffffffu;

/// Unsigned integers in the order of the scores.
template <class T>
struct KeyOf {
  using type = std::uint32_t;
};
template <>
struct KeyOf<double> {
  using type = std::uint64_t;
};
template <class T>
using Key = typename KeyOf<T>::type;

__device__ inline std::uint32_t bits_of(float score) { return __float_as_uint(score); }
__device__ inline std::uint64_t bits_of(double score) { return static_cast<std::uint64_t>(__double_as_longlong(score)); }
__device__ inline float from_bits(std::uint32_t bits) { return __uint_as_float(bits); }
__device__ inline double from_bits(std::uint64_t bits) { return __longlong_as_double(static_cast<long long>(bits)); }

/// No score has the key 0.
template <class T>
__device__ Key<T> key_of(T score) {
  constexpr auto sign = Key<T>(1) << (8 * sizeof(T) - 1);
  if (isnan(score)) score = static_cast<T>(-INFINITY);
  const auto bits = bits_of(score + T(0));  // -0 becomes 0
  return bits & sign ? ~bits : bits | sign;
}

template <class T>
__device__ T score_of(Key<T> key) {
  constexpr auto sign = Key<T>(1) << (8 * sizeof(T) - 1);
  return from_bits(key & sign ? key ^ sign : ~key);
}

/// Rows above `key` are kept, and of those at it the first `ties`.
template <class K>
struct Limit {
  K key;
  int ties;
};

struct Counts {
  int above, tied;
};

/// Shared memory of one block, beside the keys.
template <class T>
struct Workspace {
  alignas(8) unsigned histogram[2][bins];
  int warp_sum[warps];
  Counts warp_counts[warps];
  Counts block_counts;
  int found_digit, found_rest, found_size;
};

/// A barrier of all blocks. In a cluster of one a barrier of the block is cheaper.
__device__ inline void sync_blocks(int blocks) {
  if (blocks == 1) __syncthreads();
  else cg::this_cluster().sync();
}

/// A block's share of one batch row: `mine` valid rows from `first` on, in consecutive runs a warp.
template <class T>
struct Segment {
  const T* scores;  ///< of the batch row
  Key<T>* cache;    ///< keys of the share; null: each look at one reads the score again
  std::int64_t batch;
  int blocks, block, valid, first, mine;

  __device__ Key<T> key(int i) const { return cache ? cache[i] : key_of(scores[first + i]); }
};

template <class T>
__device__ Segment<T> load_segment(const RowSelectionArguments& a, Key<T>* cache) {
  auto cluster = cg::this_cluster();
  Segment<T> s;
  s.blocks = static_cast<int>(cluster.num_blocks());
  s.block = static_cast<int>(cluster.block_rank());
  s.batch = blockIdx.x / s.blocks;
  s.scores = static_cast<const T*>(a.scores) + s.batch * a.length;
  s.cache = cache;
  const auto given = a.lengths ? a.lengths[s.batch] : a.length;
  s.valid = static_cast<int>(max(std::int64_t{0}, min(given, a.length)));
  const int share = (static_cast<int>(a.length) + s.blocks - 1) / s.blocks;
  s.first = min(s.block * share, s.valid);
  s.mine = min(share, s.valid - s.first);
  if (cache) {
#pragma unroll 4
    for (int i = threadIdx.x; i < s.mine; i += threads) cache[i] = key_of(s.scores[s.first + i]);
    __syncthreads();
  }
  return s;
}

/// The inclusive sum of `value` over the threads up to this one.
__device__ inline int sum_up_to_thread(int value, int* warp_sum) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(all_lanes, value, step);
    if (lane >= step) value += other;
  }
  if (lane == 31) warp_sum[warp] = value;
  __syncthreads();
  const int before = __reduce_add_sync(all_lanes, lane < warp ? warp_sum[lane] : 0);
  return value + before;
}

/// In the histograms of all blocks, counted from the highest digit down: the digit at which `rest` rows are reached, and
/// how many of them it has to give.
template <class T>
__device__ void find_digit(Workspace<T>& w, unsigned* histogram, int blocks, int rest) {
  auto cluster = cg::this_cluster();
  const int highest = bins - 1 - 2 * static_cast<int>(threadIdx.x);
  uint2 of_block[most_blocks];
#pragma unroll
  for (int b = 0; b < most_blocks; ++b)
    of_block[b] =
        b < blocks ? *reinterpret_cast<const uint2*>(cluster.map_shared_rank(histogram, b) + highest - 1) : uint2{0, 0};
  uint2 count = {0, 0};  // of the digits highest - 1 and highest
#pragma unroll
  for (const auto& there : of_block) {
    count.x += there.x;
    count.y += there.y;
  }
  const int mine = static_cast<int>(count.x + count.y);
  const int before = sum_up_to_thread(mine, w.warp_sum) - mine;
  if (before < rest && rest <= before + mine) {
    const bool first = rest <= before + static_cast<int>(count.y);
    w.found_digit = first ? highest : highest - 1;
    w.found_rest = rest - before - (first ? 0 : static_cast<int>(count.y));
    w.found_size = static_cast<int>(first ? count.y : count.x);
  }
  __syncthreads();
}

/// One digit a pass, from the top. Each pass needs one barrier of the cluster, since the two histograms take turns: one is
/// cleared only after the barrier behind which nobody reads it.
template <class T>
__device__ Limit<Key<T>> find_limit(const Segment<T>& s, Workspace<T>& w, int kept) {
  if (kept == s.valid) return {0, 0};
  constexpr int bits = 8 * sizeof(T);
  Key<T> prefix = 0;
  int rest = kept, turn = 0;
  for (int top = bits; top > 0; turn ^= 1) {
    const int width = min(digit_bits, top), shift = top - width;
    const unsigned mask = (1u << width) - 1;
    unsigned* histogram = w.histogram[turn];
    for (int bin = threadIdx.x; bin < bins; bin += threads) histogram[bin] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < s.mine; i += threads) {
      const auto key = s.key(i);
      if (top == bits || (key >> top) == (prefix >> top))
        atomicAdd(histogram + (static_cast<unsigned>(key >> shift) & mask), 1u);
    }
    sync_blocks(s.blocks);
    find_digit(w, histogram, s.blocks, rest);
    prefix |= static_cast<Key<T>>(w.found_digit) << shift;
    rest = w.found_rest;
    if (rest == w.found_size) return {prefix ? prefix - 1 : 0, 0};  // the lower digits have nothing to decide
    top = shift;
  }
  return {prefix, rest};
}

struct Range {
  int begin, end;
};

/// The rows of a segment that a warp looks at, a multiple of 32 apart from the last warp's.
template <class T>
__device__ Range rows_of_warp(const Segment<T>& s) {
  const int warp = threadIdx.x / 32;
  const int each = ((s.mine + warps - 1) / warps + 31) / 32 * 32;
  return {min(warp * each, s.mine), min((warp + 1) * each, s.mine)};
}

/// Rows above the limit, and at it, that lie before this warp's.
template <class T>
__device__ Counts count_before(const Segment<T>& s, Workspace<T>& w, const Limit<Key<T>>& limit) {
  auto cluster = cg::this_cluster();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto range = rows_of_warp(s);
  Counts mine = {0, 0};
  for (int i = range.begin + lane; i < range.end; i += 32) {
    const auto key = s.key(i);
    mine.above += key > limit.key;
    mine.tied += key == limit.key;
  }
  mine.above = __reduce_add_sync(all_lanes, mine.above);
  mine.tied = __reduce_add_sync(all_lanes, mine.tied);
  if (lane == 0) w.warp_counts[warp] = mine;
  __syncthreads();
  const auto of_lane = w.warp_counts[lane];
  Counts before = {__reduce_add_sync(all_lanes, lane < warp ? of_lane.above : 0),
                   __reduce_add_sync(all_lanes, lane < warp ? of_lane.tied : 0)};
  if (warp == warps - 1 && lane == 0) w.block_counts = {before.above + mine.above, before.tied + mine.tied};
  sync_blocks(s.blocks);
  const auto other = lane < s.block ? *cluster.map_shared_rank(&w.block_counts, lane) : Counts{0, 0};
  before.above += __reduce_add_sync(all_lanes, other.above);
  before.tied += __reduce_add_sync(all_lanes, other.tied);
  return before;
}

/// The neighbours of the cut, as this thread sees them.
template <class K>
struct Edge {
  K lowest_kept, highest_left;
};

/// Calls emit(slot, position, key) for each kept row, slots in source order.
template <class T, class Emit>
__device__ Edge<Key<T>> emit_kept_rows(const Segment<T>& s, const Limit<Key<T>>& limit, Counts before, const Emit& emit) {
  const int lane = threadIdx.x % 32;
  const unsigned lower = (1u << lane) - 1;
  const auto range = rows_of_warp(s);
  Edge<Key<T>> edge = {~Key<T>(0), 0};
  for (int base = range.begin; base < range.end; base += 32) {
    const int i = base + lane;
    const auto key = i < range.end ? s.key(i) : Key<T>(0);
    const unsigned above = __ballot_sync(all_lanes, i < range.end && key > limit.key);
    const unsigned tied = __ballot_sync(all_lanes, i < range.end && key == limit.key);
    const int ties = before.tied + __popc(tied & lower);
    const bool kept = above >> lane & 1 || (tied >> lane & 1 && ties < limit.ties);
    if (kept) emit(before.above + __popc(above & lower) + min(ties, limit.ties), s.first + i, key);
    if (kept) edge.lowest_kept = min(edge.lowest_kept, key);
    else edge.highest_left = max(edge.highest_left, key);
    before.above += __popc(above);
    before.tied += __popc(tied);
  }
  return edge;
}

__host__ __device__ inline int power_of_two_from(int count) {
  int size = 2;
  while (size < count) size *= 2;
  return size;
}

/// Sorts kept rows, given in source order, by falling key and rising position; one block.
template <class K>
__device__ void sort_falling(K* keys, std::int32_t* positions, int size) {
  for (int width = 2; width <= size; width *= 2)
    for (int stride = width / 2; stride > 0; stride /= 2) {
      for (int pair = threadIdx.x; pair < size / 2; pair += threads) {
        const int low = 2 * pair - (pair & (stride - 1)), high = low + stride;
        const bool swapped = keys[low] < keys[high] || (keys[low] == keys[high] && positions[low] > positions[high]);
        if (swapped == ((low & width) == 0)) {
          const auto key = keys[low];
          keys[low] = keys[high];
          keys[high] = key;
          const auto position = positions[low];
          positions[low] = positions[high];
          positions[high] = position;
        }
      }
      // Up to stride 32 a warp's pairs lie within its own 64 rows.
      if (stride > 32 || (stride == 1 && width > 32)) __syncthreads();
      else __syncwarp();
    }
  __syncthreads();
}

template <class T>
__device__ double finite_gate(T score) {
  if (isfinite(score)) return score;
  return score > 0 ? 1 : 0;
}

/// Selects and writes positions, kept scores and gates; `sorting` is the memory in which the first block sorts them. Other
/// blocks see the result behind their next barrier of the cluster.
template <class T>
__device__ Edge<Key<T>> select_and_write(const RowSelectionArguments& a, const Segment<T>& s, Workspace<T>& w,
                                         unsigned char* sorting) {
  const int slots = static_cast<int>(a.slots);
  const int kept = min(slots, s.valid);
  auto* positions = a.positions + s.batch * a.slots;
  auto* scores = static_cast<T*>(a.kept) + s.batch * a.slots;
  auto* gates = a.gates ? a.gates + s.batch * a.slots : nullptr;
  const auto write_row = [&](int slot, int position, T score) {
    positions[slot] = position;
    scores[slot] = score;
    if (gates) gates[slot] = finite_gate(score);
  };
  const auto write = [&](int slot, int position, Key<T> key) { write_row(slot, position, score_of<T>(key)); };
  const auto limit = find_limit(s, w, kept);
  const auto before = count_before(s, w, limit);
  const auto edge = emit_kept_rows(s, limit, before, write);
  for (int slot = kept + s.block * threads + threadIdx.x; slot < slots; slot += s.blocks * threads) write_row(slot, -1, 0);
  if (a.keep_order) return edge;
  sync_blocks(s.blocks);
  if (s.block > 0) return edge;
  const int size = power_of_two_from(kept);
  auto* keys = reinterpret_cast<Key<T>*>(sorting);
  auto* sorted = reinterpret_cast<std::int32_t*>(keys + size);
  for (int i = threadIdx.x; i < size; i += threads) {
    keys[i] = i < kept ? key_of(scores[i]) : 0;
    sorted[i] = i < kept ? static_cast<std::int32_t>(positions[i]) : 0;
  }
  __syncthreads();
  sort_falling(keys, sorted, size);
  for (int i = threadIdx.x; i < kept; i += threads) write(i, sorted[i], keys[i]);
  return edge;
}

/// How a selection is launched: a cluster of `blocks` a batch row, each with `cached` bytes for its keys (none where they
/// are too many) and `bytes` of shared memory in all.
struct Launch {
  int blocks;
  std::size_t cached, bytes;
};

constexpr std::size_t most_dynamic_bytes = 200 * 1024;

inline Launch launch_with(const RowSelectionArguments& a, int blocks) {
  const std::size_t key_bytes = a.float64_scores ? 8 : 4;
  const auto share = static_cast<std::size_t>((a.length + blocks - 1) / blocks);
  const std::size_t sorting =
      a.keep_order ? 0 : static_cast<std::size_t>(power_of_two_from(static_cast<int>(a.slots))) * (key_bytes + 4);
  auto cached = (share * key_bytes + 15) / 16 * 16;
  if (cached + sorting > most_dynamic_bytes) cached = 0;
  return {blocks, cached, cached + sorting};
}

/// As few blocks as leave each at most `rows_per_block` rows. Clusters of 8 large blocks are placed at once only where there
/// are few of them: multiprocessors come in groups of 16 to 18, and a cluster stays within a group.
inline Launch launch_for(const RowSelectionArguments& a, std::int64_t rows_per_block) {
  const int limit = a.batch <= 8 ? most_blocks : most_blocks / 2;
  int blocks = 1;
  while (blocks < limit && blocks * rows_per_block < a.length) blocks *= 2;
  return launch_with(a, blocks);
}

template <class Kernel, class... Arguments>
cudaError_t launch_cluster(Kernel kernel, const Launch& l, std::int64_t batch, cudaStream_t stream, Arguments... arguments) {
  if (auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(l.bytes)))
    return error;
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(l.blocks);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t launch = {};
  launch.gridDim = dim3(static_cast<unsigned>(batch * l.blocks));
  launch.blockDim = dim3(threads);
  launch.dynamicSmemBytes = l.bytes;
  launch.stream = stream;
  launch.attrs = &cluster;
  launch.numAttrs = 1;
  return cudaLaunchKernelEx(&launch, kernel, arguments...);
}

inline const char* text_of(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

}  // namespace transpool::selection

#include "operators/pooling/semiseparable_mixture.cuh"

#include <algorithm>
#include <type_traits>

namespace transpool {
namespace {

constexpr int rest_rows = 256;  // most rows of one part

/// From each thread's scan of its own segment, the state in which that segment starts, in rising or falling order of the
/// threads. `before` is what stands before all.
template <class C, int N>
__device__ Scan<C, N> start_of_thread(Scan<C, N> own, Scan<C, N> before, bool rising_order) {
  __shared__ Scan<C, N> state[rest_threads];
  const int last = static_cast<int>(blockDim.x) - 1;
  const int place = rising_order ? static_cast<int>(threadIdx.x) : last - static_cast<int>(threadIdx.x);
  for (int distance = 1; distance <= last; distance *= 2) {
    __syncthreads();
    state[place] = own;
    __syncthreads();
    if (place < distance) continue;
    auto longer = state[place - distance];
    longer.then(own);
    own = longer;
  }
  __syncthreads();
  state[place] = own;
  __syncthreads();
  if (place > 0) before.then(state[place - 1]);
  return before;
}

/// What depends on the scores of batch row b alone, by one block.
template <class C>
__device__ void sum_scores(const SemiseparableArguments& a, std::int64_t b) {
  const int count = outputs(a, b), slots = static_cast<int>(a.slots);
  const C sharpness = static_cast<C>(a.sharpness);
  const C* clean = part_of<C>(a.clean, b, a.length);
  const std::int32_t* rank = a.rank + b * a.length;
  const std::int32_t* top = a.top + b * a.slots;
  C *decay = part_of<C>(a.decay, b, slots), *scale = part_of<C>(a.scale, b, slots), *tilt = part_of<C>(a.tilt, b, slots);
  C *mixed = part_of<C>(a.mixed_scores, b, slots), *slope = part_of<C>(a.score_slope, b, slots);

  const C lowest = count > 0 ? clean[top[count - 1]] : C(0);
  C sums[4] = {};  // weights and weighted scores of lower scores; the same of the lowest one of the top
  for (int j = threadIdx.x; j < a.length; j += blockDim.x) {
    if (rank[j] != -1) continue;
    const bool level = a.two_sided && clean[j] == lowest;
    const C weight = exponential(-sharpness * (lowest - clean[j]));
    sums[level ? 2 : 0] += weight;
    sums[level ? 3 : 1] += weight * clean[j];
  }
  int turn = 0;
  for (auto& sum : sums) sum = sum_over_block(sum, turn);

  for (int t = threadIdx.x; t < slots; t += blockDim.x) {
    int first = t;
    if (t < count) {
      const C score = clean[top[t]];
      const bool same = t + 1 == count || (a.two_sided && clean[top[t + 1]] == score);
      decay[t] = same ? C(-1) : exponential(-sharpness * (score - clean[top[t + 1]]));
      while (a.two_sided && first > 0 && clean[top[first - 1]] == score) --first;
    } else {
      scale[t] = tilt[t] = mixed[t] = slope[t] = decay[t] = 0;
    }
    a.positions[b * slots + t] = t < count ? top[first] : -1;
  }
  __syncthreads();

  const Segment segment(count, static_cast<int>(blockDim.x), static_cast<int>(threadIdx.x));
  Scan<C, 2> down, up, before_all, nothing;
  down.clear();
  up.clear();
  nothing.clear();
  before_all.clear();
  for (int i = 0; i < 2; ++i) {
    before_all.passed[i] = sums[i];
    before_all.level[i] = sums[2 + i];
  }
  const auto row = [&](int t) { return clean[top[t]]; };
  for (int t = segment.last - 1; t >= segment.first; --t) {
    down.step(decay[t]);
    down.add({C(1), row(t)});
  }
  for (int t = segment.first; t < segment.last; ++t) {
    up.step(t > 0 ? decay[t - 1] : C(-1));
    up.add({C(1), row(t)});
  }
  down = start_of_thread(down, before_all, /*rising_order=*/false);
  up = start_of_thread(up, nothing, /*rising_order=*/true);
  for (int t = segment.first; t < segment.last && a.two_sided; ++t) {
    up.step(t > 0 ? decay[t - 1] : C(-1));
    scale[t] = up.passed[0] + up.level[0];
    tilt[t] = up.passed[0];
    mixed[t] = up.passed[1] + up.level[1];
    slope[t] = up.passed[1];
    up.add({C(1), row(t)});
  }
  for (int t = segment.last - 1; t >= segment.first; --t) {
    down.step(decay[t]);
    down.add({C(1), row(t)});
    const C weight = down.passed[0] + down.level[0] + (a.two_sided ? scale[t] : C(0));
    const C mean = (down.passed[1] + down.level[1] + (a.two_sided ? mixed[t] : C(0))) / weight;
    scale[t] = 1 / weight;
    mixed[t] = mean;
    tilt[t] = a.two_sided ? down.passed[0] - tilt[t] : C(0);
    slope[t] = a.two_sided ? down.passed[1] - slope[t] - mean * tilt[t] : C(0);
  }
}

/// Weights of the rows of a part that are past the top, of those alone that have any: -1 where the score is that of the
/// last of the top, and so weighs 1. Returns how many.
template <class C>
__device__ int weigh_rest(const SemiseparableArguments& a, std::int64_t b, int first, int last, C* weight, int* row) {
  __shared__ int before[rest_threads / lanes + 1];
  const C* clean = part_of<C>(a.clean, b, a.length);
  const int count = outputs(a, b), lane = threadIdx.x % lanes, warp = threadIdx.x / lanes;
  const int j = first + static_cast<int>(threadIdx.x);
  C own = 0;
  if (count > 0 && j < last && a.rank[b * a.length + j] == -1) {
    const C lowest = clean[a.top[b * a.slots + count - 1]];
    own = exponential(-static_cast<C>(a.sharpness) * (lowest - clean[j]));
    if (a.two_sided && clean[j] == lowest) own = -1;
  }
  const unsigned kept = __ballot_sync(every_lane, own != 0);
  if (lane == 0) before[warp + 1] = __popc(kept);
  if (threadIdx.x == 0) before[0] = 0;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int w = 0; w < static_cast<int>(blockDim.x) / lanes; ++w) before[w + 1] += before[w];
  __syncthreads();
  if (own != 0) {
    const int place = before[warp] + __popc(kept & ((1u << lane) - 1));
    weight[place] = own;
    row[place] = j;
  }
  __syncthreads();
  return before[blockDim.x / lanes];
}

/// The first blocks, one a batch row, sum the scores; the others sum the rows past the top, part by part: groups of threads
/// take every so many rows, V columns a thread.
template <class T, int V>
__global__ void __launch_bounds__(rest_threads, 4) rest_kernel(SemiseparableArguments a) {
  using C = typename Accumulator<T>::type;
  __shared__ C weight[rest_rows];
  __shared__ int row[rest_rows];
  __shared__ C sums[rest_threads * V];
  if (blockIdx.x < a.batch) {
    sum_scores<C>(a, blockIdx.x);
    return;
  }
  const std::int64_t part_number = blockIdx.x - a.batch, b = part_number / a.splits, split = part_number % a.splits;
  const int size = static_cast<int>((a.length + a.splits - 1) / a.splits);
  const int first = static_cast<int>(min(a.length, split * size));
  const int last = static_cast<int>(min(a.length, std::int64_t{first} + size));
  const int rows = weigh_rest(a, b, first, last, weight, row);
  const T* x = static_cast<const T*>(a.x) + b * a.length * a.width;
  C* out = static_cast<C*>(a.rest) + (b * a.splits + split) * 2 * a.width;
  const int width = static_cast<int>(a.width), across = min((width + V - 1) / V, static_cast<int>(blockDim.x));
  const int groups = static_cast<int>(blockDim.x) / across;
  const int group = static_cast<int>(threadIdx.x) / across, member = static_cast<int>(threadIdx.x) % across;
  for (int begin = 0; begin < width; begin += across * V) {
    const int column = begin + member * V;
    C passed[V] = {}, level[V] = {};
    if (group < groups && column < width) {
#pragma unroll 4
      for (int i = group; i < rows; i += groups) {
        const auto pack = *reinterpret_cast<const Pack<T, V>*>(x + std::int64_t{row[i]} * width + column);
        const C w = weight[i];
#pragma unroll
        for (int v = 0; v < V; ++v) {
          if (w < 0) level[v] += static_cast<C>(pack.element[v]);
          else passed[v] += w * static_cast<C>(pack.element[v]);
        }
      }
    }
    for (int part = 0; part < 2; ++part) {
      __syncthreads();
#pragma unroll
      for (int v = 0; v < V; ++v) sums[threadIdx.x * V + v] = part == 0 ? passed[v] : level[v];
      __syncthreads();
      for (int c = threadIdx.x; c < across * V && begin + c < width; c += blockDim.x) {
        C sum = 0;
        for (int g = 0; g < groups; ++g) sum += sums[g * across * V + c];
        out[part * width + begin + c] = sum;
      }
    }
  }
}

/// The parts' sums of this lane's columns, the same in every warp.
template <int Warps, class C, int V>
__device__ Scan<C, V> sum_of_rest(const SemiseparableArguments& a, const Place& p) {
  __shared__ C sums[Warps][2 * V][lanes];
  C own[2][V] = {};
  const C* rest = static_cast<const C*>(a.rest) + p.b * a.splits * 2 * a.width + p.column;
#pragma unroll 2
  for (std::int64_t split = p.warp; split < a.splits && p.inside; split += p.warps)
    for (int part = 0; part < 2; ++part) {
      C row[V];
      load_row<C>(rest + (split * 2 + part) * a.width, row);
#pragma unroll
      for (int v = 0; v < V; ++v) own[part][v] += row[v];
    }
#pragma unroll
  for (int i = 0; i < 2 * V; ++i) sums[p.warp][i][p.lane] = own[i / V][i % V];
  __syncthreads();
  Scan<C, V> all;
  all.clear();
  for (int warp = 0; warp < p.warps; ++warp)
#pragma unroll
    for (int v = 0; v < V; ++v) {
      all.passed[v] += sums[warp][v][p.lane];
      all.level[v] += sums[warp][V + v][p.lane];
    }
  return all;
}

template <class C, int V>
struct MixItem {
  C x[V], weighed_above[V], above[V], decay;
};

template <class T, int V, bool two_sided, class Scans>
__global__ void __launch_bounds__(Scans::threads) mix_kernel(SemiseparableArguments a, int slabs) {
  using C = typename Accumulator<T>::type;
  using Item = MixItem<C, V>;
  const Place p(a, slabs, V);
  const auto [first, last] = p.segment;
  const T* x = static_cast<const T*>(a.x) + p.b * a.length * a.width + p.column;
  const std::int32_t* top = a.top + p.b * a.slots;
  const C *decay = part_of<C>(a.decay, p.b, a.slots), *scale = part_of<C>(a.scale, p.b, a.slots);
  const C* tilt = part_of<C>(a.tilt, p.b, a.slots);
  const auto offset = p.b * a.slots * a.width + p.column;
  T* values = static_cast<T*>(a.values) + offset;
  C* mean = a.mean ? static_cast<C*>(a.mean) + offset : nullptr;
  C* slope = two_sided ? static_cast<C*>(a.slope) + offset : nullptr;
  const auto load_down = [&](int t, Item& item) {
    item.decay = decay[t];
    if (p.inside) load_row<C>(x + std::int64_t{top[t]} * a.width, item.x);
  };
  const auto load_up = [&](int t, Item& item) {
    load_down(t, item);
    item.decay = t > 0 ? decay[t - 1] : C(-1);
  };

  const auto rest = sum_of_rest<Scans::warps, C, V>(a, p);
  Scan<C, V> scan;
  if constexpr (two_sided) {
    scan.clear();
    walk<Item, Scans::loads>(first, last, false, load_up, [&](int, const Item& item) {
      scan.step(item.decay);
      scan.add(item.x);
    });
    Scan<C, V> nothing;
    nothing.clear();
    scan = start_of_segment<Scans::warps>(scan, nothing, /*upward=*/false);
    walk<Item, Scans::loads>(first, last, false, load_up, [&](int t, const Item& item) {
      scan.step(item.decay);
      C all[V];
#pragma unroll
      for (int v = 0; v < V; ++v) all[v] = scan.passed[v] + scan.level[v];
      if (p.inside) {
        store_row(mean + t * a.width, all);
        store_row(slope + t * a.width, scan.passed);
      }
      scan.add(item.x);
    });
  }
  scan.clear();
  walk<Item, Scans::loads>(first, last, true, load_down, [&](int, const Item& item) {
    scan.step(item.decay);
    scan.add(item.x);
  });
  scan = start_of_segment<Scans::warps>(scan, rest, /*upward=*/true);
  const auto load_with_above = [&](int t, Item& item) {
    load_down(t, item);
    if (!two_sided || !p.inside) return;
    load_row<C>(mean + t * a.width, item.weighed_above);
    load_row<C>(slope + t * a.width, item.above);
  };
  walk<Item, Scans::loads>(first, last, true, load_with_above, [&](int t, const Item& item) {
    scan.step(item.decay);
    scan.add(item.x);
    C result[V], derivative[V];
    const C factor = scale[t], turn = tilt[t];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      result[v] = (scan.passed[v] + scan.level[v] + (two_sided ? item.weighed_above[v] : C(0))) * factor;
      derivative[v] = two_sided ? scan.passed[v] - item.above[v] - result[v] * turn : C(0);
    }
    if (!p.inside) return;
    if (mean) store_row(mean + t * a.width, result);
    if (static_cast<void*>(mean) != static_cast<void*>(values)) store_row(values + t * a.width, result);
    if (two_sided) store_row(slope + t * a.width, derivative);
  });
  for (int t = p.count + p.warp; t < a.slots && p.inside; t += p.warps) {
    const C zero[V] = {};
    store_row(values + t * a.width, zero);
    if (mean && static_cast<void*>(mean) != static_cast<void*>(values)) store_row(mean + t * a.width, zero);
    if (two_sided) store_row(slope + t * a.width, zero);
  }
}

}  // namespace

std::int64_t semiseparable_splits(std::int64_t batch, std::int64_t length) {
  constexpr std::int64_t blocks_at_once = 512;  // less than four a multiprocessor, since others sum the scores
  const auto fewest = (length + rest_rows - 1) / rest_rows, most = (length + lanes - 1) / lanes;
  return std::clamp((blocks_at_once + batch - 1) / batch, fewest, most);
}

const char* semiseparable_forward_cuda(const SemiseparableArguments& a, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  return by_rows(a, [&]<class T, int V, int Wide, bool two_sided>(int slabs) {
    using Scans = std::conditional_t<two_sided, Long, Many>;
    const auto rest_blocks = static_cast<unsigned>(a.batch * (1 + a.splits)),
               blocks = static_cast<unsigned>(a.batch * slabs);
    rest_kernel<T, Wide><<<rest_blocks, rest_threads, 0, cuda_stream>>>(a);
    mix_kernel<T, V, two_sided, Scans><<<blocks, Scans::threads, 0, cuda_stream>>>(a, slabs);
  });
}

}  // namespace transpool

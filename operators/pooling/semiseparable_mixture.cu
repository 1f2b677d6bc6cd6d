#include "operators/pooling/row_access.cuh"
#include "operators/pooling/semiseparable_mixture_cuda.h"

#include <algorithm>
#include <type_traits>

namespace transpool {
namespace {

constexpr int lanes = 32;
constexpr unsigned every_lane = 0xffffffffu;
constexpr int rank_threads = 1024;
constexpr int rest_threads = 256;
constexpr int rest_rows = 256;  // most rows of one part

/// How a block scans: segments of ranks, one a warp, and loads that a lane has under way. Together they fill the registers:
/// the forward scan of both sides is quicker with longer segments, all others with more of them.
template <int Warps, int Loads>
struct Shape {
  static constexpr int warps = Warps, loads = Loads, threads = Warps * lanes;
};
using Many = Shape<32, 4>;
using Long = Shape<16, 8>;

__device__ int valid_rows(const SemiseparableArguments& a, std::int64_t b) {
  const auto valid = a.lengths ? a.lengths[b] : a.length;
  return static_cast<int>(max(std::int64_t{0}, min(valid, a.length)));
}

__device__ int outputs(const SemiseparableArguments& a, std::int64_t b) {
  return min(valid_rows(a, b), static_cast<int>(a.slots));
}

template <class C>
__device__ C* part_of(void* all, std::int64_t b, std::int64_t size) {
  return static_cast<C*>(all) + b * size;
}

__device__ float exponential(float value) { return expf(value); }
__device__ double exponential(double value) { return exp(value); }

__device__ std::uint32_t rising(float value) {
  const auto bits = static_cast<std::uint32_t>(__float_as_int(value + 0.0f));  // both zeros are one
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ std::uint64_t rising(double value) {
  const auto bits = static_cast<std::uint64_t>(__double_as_longlong(value + 0.0));
  return bits >> 63 ? ~bits : bits | (std::uint64_t{1} << 63);
}

template <class C>
__device__ C sum_over_warp(C value) {
  for (int step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(every_lane, value, step);
  return value;
}

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

/// Rows of the top by falling key, ties by row; the wider key does not fit into one word with the row.
struct Ranked32 {
  std::uint64_t word;
  __device__ Ranked32(std::uint32_t key, int row) : word(std::uint64_t{key} << 32 | ~static_cast<std::uint32_t>(row)) {}
  __device__ int row() const { return static_cast<int>(~static_cast<std::uint32_t>(word)); }
  __device__ bool before(const Ranked32& other) const { return word > other.word; }
};

struct Ranked64 {
  std::uint64_t key;
  std::int64_t place;
  __device__ Ranked64(std::uint64_t key, int row) : key(key), place(row) {}
  __device__ int row() const { return static_cast<int>(place); }
  __device__ bool before(const Ranked64& other) const {
    return key > other.key || (key == other.key && place < other.place);
  }
};

/// The rank of each of `count` rows among them, counting. Neighbouring lanes share a row where there are lanes to spare.
template <class Ranked>
__device__ void rank_top(const Ranked* rows, int count, std::int32_t* top, std::int32_t* rank) {
  int sharing = 1;
  while (sharing < lanes && 2 * sharing * count <= static_cast<int>(blockDim.x)) sharing *= 2;
  const int share = static_cast<int>(threadIdx.x) % sharing, step = static_cast<int>(blockDim.x) / sharing;
  for (int begin = 0; begin < count; begin += step) {
    const int i = begin + static_cast<int>(threadIdx.x) / sharing;
    const auto own = rows[min(i, count - 1)];
    int ahead = 0;
#pragma unroll 8
    for (int other = share; other < count; other += sharing) ahead += rows[other].before(own) ? 1 : 0;
    for (int distance = sharing / 2; distance > 0; distance /= 2) ahead += __shfl_xor_sync(every_lane, ahead, distance);
    if (share != 0 || i >= count) continue;
    top[ahead] = own.row();
    rank[own.row()] = ahead;
  }
}

/// Counts over the block of up to three conditions. One synchronisation a call: calls take turns with two buffers.
struct Counts {
  int of[3];
};

__device__ Counts sum_over_block(Counts counts, int& turn) {
  __shared__ unsigned sums[2][2][lanes];
  const int lane = threadIdx.x % lanes, warp = threadIdx.x / lanes, warps = blockDim.x / lanes;
  const unsigned pair = __reduce_add_sync(every_lane, static_cast<unsigned>(counts.of[0] | counts.of[1] << 16));
  const unsigned third = __reduce_add_sync(every_lane, static_cast<unsigned>(counts.of[2]));
  if (lane == 0) {
    sums[turn][0][warp] = pair;
    sums[turn][1][warp] = third;
  }
  __syncthreads();
  const unsigned pairs = __reduce_add_sync(every_lane, lane < warps ? sums[turn][0][lane] : 0u);
  const unsigned thirds = __reduce_add_sync(every_lane, lane < warps ? sums[turn][1][lane] : 0u);
  turn = 1 - turn;
  return {static_cast<int>(pairs & 0xffffu), static_cast<int>(pairs >> 16), static_cast<int>(thirds)};
}

/// One block a batch row: finds the key of the last of the top two bits at a time, by counting the rows above. Nothing but
/// the place of a row in shared memory depends on the order in which threads run.
template <class C, int Items>
__global__ void __launch_bounds__(rank_threads) rank_kernel(SemiseparableArguments a) {
  using Key = decltype(rising(C()));
  using Ranked = std::conditional_t<sizeof(C) == 4, Ranked32, Ranked64>;
  extern __shared__ unsigned char memory[];
  __shared__ int taken;
  const std::int64_t b = blockIdx.x;
  const int valid = valid_rows(a, b), count = outputs(a, b), n = static_cast<int>(a.length);
  const C* scores = static_cast<const C*>(a.scores) + b * a.length;
  C* clean = part_of<C>(a.clean, b, a.length);
  std::int32_t* rank = a.rank + b * a.length;
  const auto row_of = [&](int item) { return item * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x); };
  Key key[Items];
#pragma unroll
  for (int i = 0; i < Items; ++i) {
    const int j = row_of(i);
    key[i] = 0;
    if (j >= n) continue;
    const C bound = static_cast<C>(a.bound), score = scores[j];
    const C bounded = j >= valid ? C(0) : score > bound ? bound : score >= -bound ? score : -bound;
    clean[j] = bounded;
    if (j < valid) key[i] = rising(bounded);
  }
  if (threadIdx.x == 0) taken = 0;
  int turn = 0;

  // Keys of valid rows are above 0, the key of the others.
  Key lowest = 0;
  for (int bit = 8 * sizeof(Key) - 2; bit >= 0; bit -= 2) {
    Counts reach = {};
#pragma unroll
    for (int i = 0; i < Items; ++i)
#pragma unroll
      for (int step = 0; step < 3; ++step) reach.of[step] += key[i] >= (lowest | Key(step + 1) << bit) ? 1 : 0;
    reach = sum_over_block(reach, turn);
    const int steps = reach.of[2] >= count ? 3 : reach.of[1] >= count ? 2 : reach.of[0] >= count ? 1 : 0;
    lowest |= Key(steps) << bit;
    if (steps > 0 && reach.of[steps - 1] == count) break;  // no row ties for the last place
  }
  Counts around = {};
#pragma unroll
  for (int i = 0; i < Items; ++i) {
    around.of[0] += key[i] > lowest ? 1 : 0;
    around.of[2] += key[i] >= lowest ? 1 : 0;
  }
  around = sum_over_block(around, turn);
  int last = n;  // of the rows that tie for the last place, those up to here are taken
  if (around.of[2] > count) {
    for (int from = 0; from < last;) {
      const int middle = (from + last) / 2;
      Counts before = {};
#pragma unroll
      for (int i = 0; i < Items; ++i) before.of[0] += key[i] == lowest && row_of(i) <= middle ? 1 : 0;
      if (around.of[0] + sum_over_block(before, turn).of[0] >= count) last = middle;
      else from = middle + 1;
    }
  }

  Ranked* rows = reinterpret_cast<Ranked*>(memory);
#pragma unroll
  for (int i = 0; i < Items; ++i) {
    const int j = row_of(i);
    if (j >= n) continue;
    if (j < valid && count > 0 && (key[i] > lowest || (key[i] == lowest && j <= last)))
      rows[atomicAdd(&taken, 1)] = Ranked(key[i], j);
    else rank[j] = j < valid ? -1 : -2;
  }
  __syncthreads();
  rank_top(rows, count, a.top + b * a.slots, rank);
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

/// The scan's columns of one rank: the scaled gradient of the values and, last, its product with them.
template <class C, int V>
struct FlowItem {
  C flow[V + 1], x[V], slope[V], above[V], decay;
};

/// Gradients of the top rows, and what those past the top take from all outputs.
template <class T, int V, bool two_sided, class Scans>
__global__ void __launch_bounds__(Scans::threads) flow_kernel(SemiseparableArguments a, int slabs) {
  using C = typename Accumulator<T>::type;
  using Item = FlowItem<C, V>;
  const Place p(a, slabs, V);
  const auto [first, last] = p.segment;
  const auto offset = p.b * a.slots * a.width + p.column;
  const auto source = p.b * a.length * a.width + p.column;
  const T *x = static_cast<const T*>(a.x) + source, *gradient = static_cast<const T*>(a.gradient) + offset;
  T* x_gradient = static_cast<T*>(a.x_gradient) + source;
  const C* mean = static_cast<const C*>(a.mean) + offset;
  const C* slope = two_sided ? static_cast<const C*>(a.slope) + offset : nullptr;
  C* kept = two_sided ? static_cast<C*>(a.flow) + offset : nullptr;
  const std::int32_t* top = a.top + p.b * a.slots;
  const C *decay = part_of<C>(a.decay, p.b, a.slots), *scale = part_of<C>(a.scale, p.b, a.slots);
  C* dots = static_cast<C*>(a.dots) + (p.b * slabs + p.slab) * a.slots;

  const auto load_flow = [&](int t, Item& item) {
    C own[V] = {}, value[V] = {};
    if (p.inside) {
      load_row<C>(gradient + t * a.width, own);
      load_row<C>(mean + t * a.width, value);
    }
    item.flow[V] = 0;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      item.flow[v] = own[v] * scale[t];
      item.flow[V] += item.flow[v] * value[v];
    }
  };
  const auto load_down = [&](int t, Item& item) {
    load_flow(t, item);
    item.decay = t > 0 ? decay[t - 1] : C(-1);
  };
  const auto load_up = [&](int t, Item& item) {
    load_flow(t, item);
    item.decay = decay[t];
  };
  const auto load_x = [&](int t, Item& item) {
    for (int v = 0; v < V; ++v) item.x[v] = item.slope[v] = item.above[v] = 0;
    if (!p.inside) return;
    load_row<C>(x + std::int64_t{top[t]} * a.width, item.x);
  };

  Scan<C, V + 1> scan, nothing;
  nothing.clear();
  scan.clear();
  walk<Item, Scans::loads>(first, last, false, load_down, [&](int, const Item& item) {
    scan.step(item.decay);
    scan.add(item.flow);
  });
  scan = start_of_segment<Scans::warps>(scan, nothing, /*upward=*/false);
  walk<Item, Scans::loads>(
      first, last, false,
      [&](int t, Item& item) {
        load_down(t, item);
        load_x(t, item);
        if (two_sided && p.inside) load_row<C>(slope + t * a.width, item.slope);
      },
      [&](int t, const Item& item) {
        scan.step(item.decay);
        scan.add(item.flow);
        C all[V], dot = two_sided ? -scan.passed[V] : -(scan.passed[V] + scan.level[V]);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          all[v] = scan.passed[v] + scan.level[v];
          dot += item.x[v] * (two_sided ? scan.passed[v] : all[v]);
          if (two_sided) dot -= item.flow[v] * item.slope[v];
        }
        dot = sum_over_warp(dot);
        if (p.lane == 0) dots[t] = dot;
        if (!p.inside) return;
        if (two_sided) store_row(kept + t * a.width, all);
        else store_row(x_gradient + std::int64_t{top[t]} * a.width, all);
      });
  if (p.warp == p.warps - 1) {
    C all[V], passed[V];
    for (int v = 0; v < V; ++v) {
      passed[v] = scan.passed[v];
      all[v] = scan.passed[v] + scan.level[v];
    }
    const C all_dot = sum_over_warp(scan.passed[V] + scan.level[V]), passed_dot = sum_over_warp(scan.passed[V]);
    C* last_dot = static_cast<C*>(a.last_dot) + (p.b * slabs + p.slab) * 2;
    if (p.lane == 0) {
      last_dot[0] = all_dot;
      last_dot[1] = passed_dot;
    }
    C* last_flow = static_cast<C*>(a.last_flow) + p.b * 2 * a.width + p.column;
    if (p.inside) {
      store_row(last_flow, all);
      store_row(last_flow + a.width, passed);
    }
  }
  if constexpr (two_sided) {
    scan.clear();
    walk<Item, Scans::loads>(first, last, true, load_up, [&](int, const Item& item) {
      scan.step(item.decay);
      scan.add(item.flow);
    });
    scan = start_of_segment<Scans::warps>(scan, nothing, /*upward=*/true);
    walk<Item, Scans::loads>(
        first, last, true,
        [&](int t, Item& item) {
          load_up(t, item);
          load_x(t, item);
          if (p.inside) load_row<C>(kept + t * a.width, item.above);
        },
        [&](int t, const Item& item) {
          scan.step(item.decay);
          C all[V], dot = scan.passed[V];
#pragma unroll
          for (int v = 0; v < V; ++v) {
            all[v] = item.above[v] + scan.passed[v] + scan.level[v];
            dot -= item.x[v] * scan.passed[v];
          }
          scan.add(item.flow);
          dot = sum_over_warp(dot);
          if (p.lane == 0) dots[t] += dot;
          if (p.inside) store_row(x_gradient + std::int64_t{top[t]} * a.width, all);
        });
  }
}

constexpr int rows_a_warp = 4;

/// Gradients of the rows past the top, and the scores' gradients of all. One warp works on a few rows at a time.
template <class T, int V>
__global__ void __launch_bounds__(rest_threads) rest_gradient_kernel(SemiseparableArguments a, int slabs) {
  using C = typename Accumulator<T>::type;
  const int lane = threadIdx.x % lanes, width = static_cast<int>(a.width);
  const std::int64_t warps_a_row = (a.length + rows_a_warp - 1) / rows_a_warp;
  const std::int64_t warp = (blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x) / lanes;
  const std::int64_t b = warp / warps_a_row;
  if (b >= a.batch) return;
  const int first = static_cast<int>(warp % warps_a_row) * rows_a_warp, count = outputs(a, b);
  const C* clean = part_of<C>(a.clean, b, a.length);
  const C lowest = count > 0 ? clean[a.top[b * a.slots + count - 1]] : C(0), sharpness = static_cast<C>(a.sharpness);
  const C* flow = static_cast<const C*>(a.last_flow) + b * 2 * a.width;

  int rank[rows_a_warp];
  C weight[rows_a_warp], dot[rows_a_warp];
  bool level[rows_a_warp];
#pragma unroll
  for (int i = 0; i < rows_a_warp; ++i) {
    const int j = first + i;
    rank[i] = j < a.length ? a.rank[b * a.length + j] : 0;
    weight[i] = rank[i] == -1 && count > 0 ? exponential(-sharpness * (lowest - clean[j])) : C(0);
    level[i] = a.two_sided && weight[i] != 0 && clean[j] == lowest;
    dot[i] = 0;
  }
  for (int column = lane * V; column < width; column += lanes * V) {
    C all[V] = {};
    if (count > 0) {
#pragma unroll
      for (int v = 0; v < V; ++v) all[v] = flow[column + v];
    }
    Pack<T, V> rows[rows_a_warp];
    const auto offset = (b * a.length + first) * a.width + column;
#pragma unroll
    for (int i = 0; i < rows_a_warp; ++i)
      if (weight[i] != 0)
        rows[i] = *reinterpret_cast<const Pack<T, V>*>(static_cast<const T*>(a.x) + offset + std::int64_t{i} * width);
#pragma unroll
    for (int i = 0; i < rows_a_warp; ++i) {
      if (rank[i] >= 0) continue;
      C gradient[V];
#pragma unroll
      for (int v = 0; v < V; ++v) gradient[v] = weight[i] != 0 ? weight[i] * all[v] : C(0);
      if (weight[i] != 0) {
#pragma unroll
        for (int v = 0; v < V; ++v)
          dot[i] += static_cast<C>(rows[i].element[v]) * (level[i] ? flow[width + column + v] : all[v]);
      }
      store_row(static_cast<T*>(a.x_gradient) + offset + std::int64_t{i} * width, gradient);
    }
  }
#pragma unroll
  for (int i = 0; i < rows_a_warp; ++i) {
    const int j = first + i;
    if (j >= a.length) continue;
    C gain = 0;
    if (rank[i] >= 0)
      for (int slab = lane; slab < slabs; slab += lanes)
        gain += static_cast<const C*>(a.dots)[(b * slabs + slab) * a.slots + rank[i]];
    else if (weight[i] != 0) {
      gain = dot[i];
      for (int slab = lane; slab < slabs; slab += lanes)
        gain -= static_cast<const C*>(a.last_dot)[(b * slabs + slab) * 2 + (level[i] ? 1 : 0)];
      gain *= weight[i];
    }
    gain = sum_over_warp(gain) * sharpness;
    if (lane != 0) continue;
    const C given = static_cast<const C*>(a.scores)[b * a.length + j], bound = static_cast<C>(a.bound);
    part_of<C>(a.score_gradient, b, a.length)[j] = given >= -bound && given <= bound ? gain : C(0);
  }
}

const char* launched() {
  const auto error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

bool aligned(const SemiseparableArguments& a, std::size_t bytes) {
  for (const void* pointer : {a.x, a.gradient, static_cast<const void*>(a.values), static_cast<const void*>(a.x_gradient)})
    if (reinterpret_cast<std::uintptr_t>(pointer) % bytes != 0) return false;
  return true;
}

template <class C, int Items>
const char* launch_rank(const SemiseparableArguments& a, cudaStream_t stream) {
  const auto shared = static_cast<std::size_t>(a.slots) * (sizeof(C) == 4 ? sizeof(Ranked32) : sizeof(Ranked64));
  const auto kernel = rank_kernel<C, Items>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  kernel<<<static_cast<unsigned>(a.batch), rank_threads, shared, stream>>>(a);
  return launched();
}

template <class C>
const char* rank_rows(const SemiseparableArguments& a, cudaStream_t stream) {
  if (a.length <= 2 * rank_threads) return launch_rank<C, 2>(a, stream);
  if (a.length <= 8 * rank_threads) return launch_rank<C, 8>(a, stream);
  return launch_rank<C, 16>(a, stream);
}

template <class T, int V, int Wide, bool two_sided>
void launch(const SemiseparableArguments& a, bool forward, cudaStream_t stream) {
  const auto slabs = static_cast<int>((a.width + lanes * V - 1) / (lanes * V));
  const auto blocks = static_cast<unsigned>(a.batch * slabs);
  if (forward) {
    rest_kernel<T, Wide><<<static_cast<unsigned>(a.batch * (1 + a.splits)), rest_threads, 0, stream>>>(a);
    using Scans = std::conditional_t<two_sided, Long, Many>;
    mix_kernel<T, V, two_sided, Scans><<<blocks, Scans::threads, 0, stream>>>(a, slabs);
  } else {
    flow_kernel<T, V, two_sided, Many><<<blocks, Many::threads, 0, stream>>>(a, slabs);
    const auto warps = a.batch * ((a.length + rows_a_warp - 1) / rows_a_warp);
    const auto rest_blocks = static_cast<unsigned>((warps * lanes + rest_threads - 1) / rest_threads);
    rest_gradient_kernel<T, Wide><<<rest_blocks, rest_threads, 0, stream>>>(a, slabs);
  }
}

template <class T>
const char* dispatch(const SemiseparableArguments& a, bool forward, cudaStream_t stream) {
  constexpr int Wide = 16 / sizeof(T);
  constexpr int V = sizeof(T) == 8 ? 1 : 2;  // what shared memory holds of every warp
  const bool wide = a.width % Wide == 0 && aligned(a, 16);
  if (a.two_sided) wide ? launch<T, V, Wide, true>(a, forward, stream) : launch<T, 1, 1, true>(a, forward, stream);
  else wide ? launch<T, V, Wide, false>(a, forward, stream) : launch<T, 1, 1, false>(a, forward, stream);
  return launched();
}

const char* dispatch(const SemiseparableArguments& a, bool forward, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  switch (a.element) {
    case Element::float64: return dispatch<double>(a, forward, cuda_stream);
    case Element::float32: return dispatch<float>(a, forward, cuda_stream);
    case Element::float16: return dispatch<__half>(a, forward, cuda_stream);
    case Element::bfloat16: return dispatch<__nv_bfloat16>(a, forward, cuda_stream);
  }
  return "semiseparable_mixture: unknown element type";
}

}  // namespace

std::int64_t semiseparable_splits(std::int64_t batch, std::int64_t length) {
  constexpr std::int64_t blocks_at_once = 512;  // less than four a multiprocessor, since others sum the scores
  const auto fewest = (length + rest_rows - 1) / rest_rows, most = (length + lanes - 1) / lanes;
  return std::clamp((blocks_at_once + batch - 1) / batch, fewest, most);
}

std::int64_t semiseparable_slabs(std::int64_t width) { return (width + lanes - 1) / lanes; }

bool semiseparable_ranks(std::int64_t length, std::int64_t slots) { return length <= 16 * rank_threads && slots <= 4096; }

const char* semiseparable_rank_cuda(const SemiseparableArguments& arguments, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  return arguments.element == Element::float64 ? rank_rows<double>(arguments, cuda_stream)
                                               : rank_rows<float>(arguments, cuda_stream);
}

const char* semiseparable_forward_cuda(const SemiseparableArguments& arguments, void* stream) {
  return dispatch(arguments, true, stream);
}

const char* semiseparable_backward_cuda(const SemiseparableArguments& arguments, void* stream) {
  return dispatch(arguments, false, stream);
}

}  // namespace transpool

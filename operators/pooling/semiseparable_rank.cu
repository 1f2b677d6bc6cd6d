#include "operators/pooling/semiseparable_mixture.cuh"

namespace transpool {
namespace {

constexpr int threads = 1024;

__device__ std::uint32_t rising(float value) {
  const auto bits = static_cast<std::uint32_t>(__float_as_int(value + 0.0f));  // both zeros are one
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ std::uint64_t rising(double value) {
  const auto bits = static_cast<std::uint64_t>(__double_as_longlong(value + 0.0));
  return bits >> 63 ? ~bits : bits | (std::uint64_t{1} << 63);
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
__global__ void __launch_bounds__(threads) rank_kernel(SemiseparableArguments a) {
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

template <class C, int Items>
const char* launch_rank(const SemiseparableArguments& a, cudaStream_t stream) {
  const auto shared = static_cast<std::size_t>(a.slots) * (sizeof(C) == 4 ? sizeof(Ranked32) : sizeof(Ranked64));
  const auto kernel = rank_kernel<C, Items>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  kernel<<<static_cast<unsigned>(a.batch), threads, shared, stream>>>(a);
  return launch_error();
}

template <class C>
const char* rank_rows(const SemiseparableArguments& a, cudaStream_t stream) {
  if (a.length <= 2 * threads) return launch_rank<C, 2>(a, stream);
  if (a.length <= 8 * threads) return launch_rank<C, 8>(a, stream);
  return launch_rank<C, 16>(a, stream);
}

}  // namespace

bool semiseparable_ranks(std::int64_t length, std::int64_t slots) { return length <= 16 * threads && slots <= 4096; }

const char* semiseparable_rank_cuda(const SemiseparableArguments& arguments, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  return arguments.element == Element::float64 ? rank_rows<double>(arguments, cuda_stream)
                                               : rank_rows<float>(arguments, cuda_stream);
}

}  // namespace transpool

#include "operators/pooling/tournament_cuda.h"

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>

namespace transpool {
namespace {

namespace cg = cooperative_groups;

constexpr int threads = 512;  // two blocks fit a multiprocessor, so that 16 clusters of 8 run at once
constexpr int warps = threads / 32;
constexpr int largest_cluster = 16;    // above 8 the hardware must be asked for it
constexpr int largest_segment = 4096;  // players of one block: what its shared memory holds
constexpr int quick_segment = 1024;    // blocks are added up to the portable cluster size before segments grow

/// Players of one batch row are spread over the blocks of a cluster, `segment` consecutive ones a block. What a block owns:
struct Segment {
  std::uint64_t* key;    // sorted: sort_key
  std::int32_t* before;  // by place: winners of the segment that stand before
  std::int32_t* rank;    // by place: rank among all players of the round
  double* score[2];      // by place; this round's and the next one's
  std::int32_t* leader[2];
  double* ranked_score;  // by rank - first rank of the segment
  std::int32_t* ranked_player;
};

constexpr std::size_t bytes_a_player = 8 + 4 + 4 + 2 * (8 + 4) + 8 + 4;

__device__ Segment segment_in(unsigned char* memory, int capacity) {
  Segment s;
  const auto take = [&](std::size_t size) {
    auto* part = memory;
    memory += size * capacity;
    return part;
  };
  s.key = reinterpret_cast<std::uint64_t*>(take(8));
  s.score[0] = reinterpret_cast<double*>(take(8));
  s.score[1] = reinterpret_cast<double*>(take(8));
  s.ranked_score = reinterpret_cast<double*>(take(8));
  s.before = reinterpret_cast<std::int32_t*>(take(4));
  s.rank = reinterpret_cast<std::int32_t*>(take(4));
  s.leader[0] = reinterpret_cast<std::int32_t*>(take(4));
  s.leader[1] = reinterpret_cast<std::int32_t*>(take(4));
  s.ranked_player = reinterpret_cast<std::int32_t*>(take(4));
  return s;
}

__device__ double infinity() { return __longlong_as_double(0x7ff0000000000000LL); }

/// The bits of a score that its rank is read from (see comparable_scores), falling scores as rising integers, and below
/// them the player's place in its segment: a tie goes to the earlier one. Both zeros are one.
constexpr std::uint64_t place_mask = largest_segment - 1;

__device__ std::uint64_t sort_key(double score, int place) {
  const auto bits = static_cast<std::uint64_t>(__double_as_longlong(score + 0.0));
  const auto rising = bits >> 63 ? ~bits : bits | (std::uint64_t{1} << 63);
  return (~rising & ~place_mask) | static_cast<std::uint64_t>(place);
}

__device__ double finite_or_zero(double value) { return isfinite(value) ? value : 0.0; }

/// softmax(B^a, B^b)[0] for a >= b; equal scores share evenly, a score of -inf gives all away.
__device__ double stronger_share(double a, double b, double base) {
  if (a == b) return 0.5;
  const double lead = pow(base, a) - pow(base, b);
  if (b == -infinity() || isnan(lead)) return 1;
  return 1 / (1 + exp(-lead));
}

/// Sorts `size` (a power of two) keys in shared memory.
__device__ void bitonic_sort(std::uint64_t* key, int size) {
  for (int width = 2; width <= size; width *= 2)
    for (int stride = width / 2; stride > 0; stride /= 2) {
      for (int pair = threadIdx.x; pair < size / 2; pair += threads) {
        const int low = 2 * pair - (pair & (stride - 1));
        const auto a = key[low], b = key[low + stride];
        if ((a > b) == ((low & width) == 0)) {
          key[low] = b;
          key[low + stride] = a;
        }
      }
      // Up to stride 32 a warp's pairs lie within its own 64 keys.
      if (stride > 32 || (stride == 1 && width > 32)) __syncthreads();
      else __syncwarp();
    }
  __syncthreads();
}

/// How many of `size` sorted keys are below `key`.
__device__ int count_below(const std::uint64_t* keys, int size, std::uint64_t key) {
  int low = 0;
  while (size > 0) {
    const int half = size / 2;
    const bool below = keys[low + half] < key;
    low = below ? low + half + 1 : low;
    size = below ? size - half - 1 : half;
  }
  return low;
}

/// Exclusive sums of 0 and 1 over the block's players in their order, one call a tile of `threads`; `total` grows.
__device__ int count_winners_before(bool wins, int& total, int* warp_count) {
  const unsigned mask = __ballot_sync(0xffffffffu, wins);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane == 0) warp_count[warp] = __popc(mask);
  __syncthreads();
  int before = total + __popc(mask & ((1u << lane) - 1));
  int all = 0;
  for (int w = 0; w < warps; ++w) {
    if (w < warp) before += warp_count[w];
    all += warp_count[w];
  }
  total += all;
  __syncthreads();
  return before;
}

struct Round {
  int players, half, segment, first, mine;  // mine: players of this block, from `first` on
};

__device__ Round round_of(std::int64_t padded, int number, int blocks, int block) {
  Round r;
  r.players = static_cast<int>(padded >> number);
  r.half = r.players / 2;
  r.segment = (r.players + blocks - 1) / blocks;
  r.first = min(block * r.segment, r.players);
  r.mine = min(r.segment, r.players - r.first);
  return r;
}

__device__ int valid_rows(const TournamentArguments& a, std::int64_t batch) {
  const auto valid = a.lengths ? a.lengths[batch] : a.length;
  return static_cast<int>(max(std::int64_t{0}, min(valid, a.length)));
}

template <class T>
__global__ void __launch_bounds__(threads) forward_kernel(TournamentArguments a, int capacity) {
  extern __shared__ unsigned char memory[];
  __shared__ int warp_count[warps];
  __shared__ int winners;
  auto cluster = cg::this_cluster();
  const int blocks = static_cast<int>(cluster.num_blocks());
  const int block = static_cast<int>(cluster.block_rank());
  const std::int64_t batch = blockIdx.x / blocks;
  const std::int64_t padded = a.slots << a.rounds;
  const std::int64_t pairs = padded - a.slots;
  const auto valid = valid_rows(a, batch);
  const Segment s = segment_in(memory, capacity);
  int real = valid;
  int now = 0;

  {
    const auto r = round_of(padded, 0, blocks, block);
    const T* scores = static_cast<const T*>(a.scores) + batch * a.length;
    for (int i = threadIdx.x; i < r.mine; i += threads) {
      const int player = r.first + i;
      const double score = player < valid ? static_cast<double>(scores[player]) : -infinity();
      s.score[0][i] = isnan(score) ? -infinity() : score;
      s.leader[0][i] = player;
    }
    __syncthreads();
  }

  for (int number = 0; number < a.rounds; ++number) {
    const auto r = round_of(padded, number, blocks, block);
    const auto next = round_of(padded, number + 1, blocks, block);
    int size = 2;
    while (size < r.segment) size *= 2;
    for (int i = threadIdx.x; i < size; i += threads) {
      s.key[i] = i < r.mine ? sort_key(s.score[now][i], i) : ~std::uint64_t{0};
    }
    __syncthreads();
    bitonic_sort(s.key, size);
    cluster.sync();

    // Segments hold players in their order, so a tie with an earlier segment is lost and one with a later segment is won.
    for (int i = threadIdx.x; i < r.mine; i += threads) {
      const auto key = s.key[i];
      int rank = i;
      for (int step = 1; step < blocks; ++step) {
        const int other = (block + step) % blocks;
        const int size_there = min(r.segment, max(0, r.players - other * r.segment));
        const auto limit = other < block ? (key | place_mask) + 1 : key & ~place_mask;
        rank += count_below(cluster.map_shared_rank(s.key, other), size_there, limit);
      }
      const int place = static_cast<int>(key & place_mask);
      s.rank[place] = rank;
      const int owner = rank / r.segment;
      cluster.map_shared_rank(s.ranked_score, owner)[rank - owner * r.segment] = s.score[now][place];
      cluster.map_shared_rank(s.ranked_player, owner)[rank - owner * r.segment] = r.first + place;
    }
    __syncthreads();
    if (threadIdx.x == 0) winners = 0;
    int total = 0;
    const int tiles = (r.segment + threads - 1) / threads;

    for (int tile = 0; tile < tiles; ++tile) {
      const int i = tile * threads + threadIdx.x;
      const bool wins = i < r.mine && s.rank[i] < r.half;
      const int before = count_winners_before(wins, total, warp_count);
      if (i < r.mine) s.before[i] = before;
    }
    if (threadIdx.x == 0) winners = total;
    cluster.sync();

    int winners_before = 0;
    for (int other = 0; other < block; ++other) winners_before += *cluster.map_shared_rank(&winners, other);
    const std::int64_t pair_base = batch * pairs + (padded - (padded >> number));
    const std::int64_t player_base = batch * 2 * pairs + 2 * (padded - (padded >> number));
    for (int i = threadIdx.x; i < r.mine; i += threads) {
      const int rank = s.rank[i];
      if (rank >= r.half) continue;
      const int weaker_rank = a.mirror ? r.players - 1 - rank : rank + r.half;
      const int owner = weaker_rank / r.segment;
      const double strong = s.score[now][i];
      const double weak = cluster.map_shared_rank(s.ranked_score, owner)[weaker_rank - owner * r.segment];
      const int weaker = cluster.map_shared_rank(s.ranked_player, owner)[weaker_rank - owner * r.segment];
      const double share = weaker_rank >= real ? 1.0 : stronger_share(strong, weak, a.base);
      const double mixed = share == 1 || strong == weak ? strong : share * strong + (1 - share) * weak;
      const int pair = a.keep_order ? winners_before + s.before[i] : rank;
      const int home = pair / next.segment;
      cluster.map_shared_rank(s.score[1 - now], home)[pair - home * next.segment] = mixed;
      cluster.map_shared_rank(s.leader[1 - now], home)[pair - home * next.segment] = s.leader[now][i];
      a.stronger[pair_base + pair] = r.first + i;
      a.weaker[pair_base + pair] = weaker;
      a.share[pair_base + pair] = share;
      a.stronger_score[pair_base + pair] = strong;
      a.weaker_score[pair_base + pair] = weak;
      a.next[player_base + r.first + i] = 2 * pair;
      a.factor[player_base + r.first + i] = share;
      a.next[player_base + weaker] = 2 * pair + 1;
      a.factor[player_base + weaker] = 1 - share;
    }
    real = min(real, r.half);
    now = 1 - now;
    cluster.sync();
  }

  const auto last = round_of(padded, a.rounds, blocks, block);
  for (int i = threadIdx.x; i < last.mine; i += threads) {
    const bool empty = s.leader[now][i] >= valid;
    a.slot_scores[batch * a.slots + last.first + i] = empty ? 0 : s.score[now][i];
    a.positions[batch * a.slots + last.first + i] = empty ? -1 : s.leader[now][i];
  }
  const auto first = round_of(padded, 0, blocks, block);
  for (int i = threadIdx.x; i < first.mine; i += threads) {
    const int player = first.first + i;
    int node = player, path = 0;
    double weight = 1;
    for (int number = 0; number < a.rounds; ++number) {
      const auto place = batch * 2 * pairs + 2 * (padded - (padded >> number)) + node;
      const int next = a.next[place];
      weight *= a.factor[place];
      path |= (next & 1) << number;
      node = next >> 1;
    }
    const auto out = ((batch * a.slots + node) << a.rounds) + path;
    a.rows[out] = player < valid ? player : -1;
    a.weights[out] = player < valid ? weight : 0;
  }
}

/// d share / d score of either side; 0 where one side has all the weight or B^score is not finite.
__device__ double share_slope(double share, double score, double base) {
  return finite_or_zero(share * (1 - share) * log(base) * pow(base, score));
}

/// One cluster a batch row: first upward, what the loss gains from a unit of weight on each player, then downward, the
/// players' weights and the gradient of their scores (which takes the place of the gain).
template <class T>
__global__ void __launch_bounds__(threads) backward_kernel(TournamentArguments a) {
  auto cluster = cg::this_cluster();
  const auto first = static_cast<std::int64_t>(cluster.thread_rank());
  const auto step = static_cast<std::int64_t>(cluster.num_threads());
  const std::int64_t batch = blockIdx.x / cluster.num_blocks();
  const std::int64_t padded = a.slots << a.rounds;
  const std::int64_t pairs = padded - a.slots;
  const auto valid = valid_rows(a, batch);
  const auto players_of = [&](double* all, int number) {
    return all + batch * (2 * pairs + a.slots) + 2 * (padded - (padded >> number));
  };
  const auto pairs_of = [&](auto* all, int number) { return all + batch * pairs + (padded - (padded >> number)); };

  double* gain = players_of(a.gain, 0);
  for (std::int64_t i = first; i < padded; i += step)
    if (i >= valid) gain[i] = 0;
  for (std::int64_t i = first; i < padded; i += step) {
    const auto row = a.rows[batch * padded + i];
    if (row >= 0) gain[row] = a.weight_gradient[batch * padded + i];
  }
  cluster.sync();
  for (int number = 0; number < a.rounds; ++number) {
    gain = players_of(a.gain, number);
    double* above = players_of(a.gain, number + 1);
    for (std::int64_t p = first; p < (padded >> number) / 2; p += step) {
      const double share = pairs_of(a.share, number)[p];
      const double strong = gain[pairs_of(a.stronger, number)[p]], weak = gain[pairs_of(a.weaker, number)[p]];
      pairs_of(a.difference, number)[p] = strong - weak;
      above[p] = share * strong + (1 - share) * weak;
    }
    cluster.sync();
  }

  for (std::int64_t i = first; i < a.slots; i += step) {
    players_of(a.gain, a.rounds)[i] = a.slot_gradient[batch * a.slots + i];
    players_of(a.node_weight, a.rounds)[i] = 1;
  }
  cluster.sync();
  for (int number = a.rounds; number-- > 0;) {
    const double* above = players_of(a.gain, number + 1);
    const double* weight = players_of(a.node_weight, number + 1);
    for (std::int64_t p = first; p < (padded >> number) / 2; p += step) {
      const double share = pairs_of(a.share, number)[p];
      const double strong = pairs_of(a.stronger_score, number)[p], weak = pairs_of(a.weaker_score, number)[p];
      const double share_gradient = weight[p] * pairs_of(a.difference, number)[p] + above[p] * finite_or_zero(strong - weak);
      const auto stronger = pairs_of(a.stronger, number)[p], weaker = pairs_of(a.weaker, number)[p];
      players_of(a.gain, number)[stronger] = above[p] * share + share_gradient * share_slope(share, strong, a.base);
      players_of(a.gain, number)[weaker] = above[p] * (1 - share) - share_gradient * share_slope(share, weak, a.base);
      players_of(a.node_weight, number)[stronger] = weight[p] * share;
      players_of(a.node_weight, number)[weaker] = weight[p] * (1 - share);
    }
    cluster.sync();
  }
  gain = players_of(a.gain, 0);
  for (std::int64_t i = first; i < a.length; i += step) {
    const auto place = batch * a.length + i;
    const bool counts = i < valid && !isnan(static_cast<const T*>(a.scores)[place]);
    static_cast<T*>(a.score_gradient)[place] = counts ? static_cast<T>(gain[i]) : T(0);
  }
}

/// Blocks of a cluster: one player a thread up to the portable size, then as few as hold the row.
int blocks_of(std::int64_t padded) {
  int blocks = 1;
  while (blocks < 8 && blocks * quick_segment < padded) blocks *= 2;
  while (static_cast<std::int64_t>(blocks) * largest_segment < padded) blocks *= 2;
  return blocks;
}

template <class Kernel, class... Arguments>
cudaError_t launch(Kernel kernel, std::int64_t batch, int blocks, std::size_t bytes, cudaStream_t stream,
                   Arguments... arguments) {
  if (blocks > 8)
    if (auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1)) return error;
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(blocks);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t launch = {};
  launch.gridDim = dim3(static_cast<unsigned>(batch * blocks));
  launch.blockDim = dim3(threads);
  launch.dynamicSmemBytes = bytes;
  launch.stream = stream;
  launch.attrs = &cluster;
  launch.numAttrs = 1;
  return cudaLaunchKernelEx(&launch, kernel, arguments...);
}

template <class T>
cudaError_t launch_forward(const TournamentArguments& a, cudaStream_t stream) {
  const std::int64_t padded = a.slots << a.rounds;
  const int blocks = blocks_of(padded);
  int capacity = 2;
  while (capacity * static_cast<std::int64_t>(blocks) < padded) capacity *= 2;
  const auto bytes = capacity * bytes_a_player;
  if (auto error =
          cudaFuncSetAttribute(forward_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)))
    return error;
  return launch(forward_kernel<T>, a.batch, blocks, bytes, stream, a, capacity);
}

template <class T>
cudaError_t launch_backward(const TournamentArguments& a, cudaStream_t stream) {
  return launch(backward_kernel<T>, a.batch, std::min(8, blocks_of(a.slots << a.rounds)), 0, stream, a);
}

const char* text_of(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

}  // namespace

std::int64_t longest_tournament_cuda() { return static_cast<std::int64_t>(largest_cluster) * largest_segment; }

const char* tournament_forward_cuda(const TournamentArguments& a, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  return text_of(a.float64_scores ? launch_forward<double>(a, cuda_stream) : launch_forward<float>(a, cuda_stream));
}

const char* tournament_backward_cuda(const TournamentArguments& a, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  return text_of(a.float64_scores ? launch_backward<double>(a, cuda_stream) : launch_backward<float>(a, cuda_stream));
}

}  // namespace transpool

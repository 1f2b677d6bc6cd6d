#include "operators/pooling/successive_halving_tournament.cuh"

#include <cooperative_groups.h>

#include <algorithm>
#include <cmath>

namespace transpool {
namespace {

namespace cg = cooperative_groups;

constexpr int portable_cluster = 8;  // above it the hardware must be asked for
constexpr int largest_cluster = 16;
constexpr int largest_segment = 4096;  // players of one block: what its shared memory holds
constexpr int threads = 1024;
constexpr int intervals = 64;                // of a round's keys, each cut into buckets
constexpr int most_samples = intervals - 1;  // of keys, which bound the intervals

/// Who plays: `leader` is the source row that never lost, `number` the player's place among the players of its round.
struct alignas(16) Player {
  double score;
  std::int32_t leader;
  std::int32_t number;
};

/// A player on the way to its rank: its bucket's first and last rank.
struct alignas(16) Ranked {
  double score;
  std::uint16_t leader, number, first, last;
};

/// The players of a batch row are spread over the blocks of a cluster, consecutive ones a block. What a block of
/// `Capacity` players owns, with `Parts` buckets an interval:
template <int Capacity, int Parts>
struct alignas(16) Segment {
  static constexpr int buckets = intervals * Parts;
  static constexpr int margin = Capacity > 2048 ? 64 : 256;  // ranks on either side of its own that it also knows

  Player pairs[2][Capacity / 2];         // the stronger and the weaker of each pair
  Ranked ranked[Capacity + 2 * margin];  // by bucket, from `margin` ranks before its own on
  Key keys[Capacity + 2 * margin];       // of these
  double score[Capacity];                // by player
  Key samples[intervals];                // as they come
  Key bounds[intervals];                 // sorted; the last ones are above all keys
  float parts_each[intervals];  // of an interval: its buckets over its length; of those at the ends: -1 over the mean length
  std::int32_t count[buckets];  // of this block's keys; in the end a bit for each source row that leads an output
  std::uint16_t next[buckets];  // rank at which this block's keys begin
  std::uint16_t first[buckets + 1];  // rank at which all begin; in the end leaders before each word of bits
  std::uint16_t leader[Capacity];    // by player
  std::int32_t warp_total[threads / 32];
};

constexpr int tie_bits = 16;

/// Falling scores, as they are compared, as rising integers, and below them who wins a tie.
__device__ Key sort_key(double score, int tie) {
  return static_cast<Key>(rising_bits(-static_cast<float>(score))) << tie_bits | static_cast<Key>(tie);
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

/// n / d for n and d below 2^16 without a division.
__device__ unsigned long long reciprocal_of(int d) {
  return ((1ULL << 32) + static_cast<unsigned>(d) - 1) / static_cast<unsigned>(d);
}
__device__ int quotient(int n, unsigned long long reciprocal) {
  return static_cast<int>(static_cast<unsigned>(n) * reciprocal >> 32);
}

/// The steps of round `number` of a batch row; those of the first round are kept by who settles it.
__device__ TournamentStep* steps_of(const SuccessiveHalvingArguments& a, std::int64_t batch, int number) {
  const std::int64_t padded = a.slots << a.rounds;
  return static_cast<TournamentStep*>(a.workspace) + batch * (padded - 2 * a.slots) + (padded - 2 * (padded >> number));
}

/// One block's part of the tournament of one batch row.
template <class Score, class Weight, int Items, int Parts>
struct Contest {
  using Own = Segment<threads * Items, Parts>;

  const SuccessiveHalvingArguments& a;
  Own& s;
  cg::cluster_group cluster;
  const int blocks, block;
  const std::int64_t batch, padded;
  const int valid;
  const double log2_base;

  /// A pair of the first round, threadIdx.x, + threads, ... of the block's: its rows and what they make up of it; where it
  /// has come to, what it makes up of that, and the bits of its leaves but for the lowest.
  struct FirstPair {
    int stronger, weaker;
    Weight part[2];
    int node, leaf, leader;
    Weight weight;
  };
  static constexpr int pair_items = (Items + 1) / 2;
  FirstPair pairs[pair_items];

  __device__ Key key_of(const Round& r, int i) const {
    return sort_key(s.score[i], a.keep_order ? s.leader[i] : r.first + i);
  }

  /// Every block gets each `stride`-th key of the round.
  __device__ void share_samples(const Round& r, int stride) {
    const int begin = (r.first + stride - 1) / stride, end = (r.first + r.mine + stride - 1) / stride;
    const int shift = __ffs(blocks) - 1;
    for (int i = threadIdx.x; i < (end - begin) << shift; i += threads) {
      const int sample = begin + (i >> shift);
      *cluster.map_shared_rank(&s.samples[sample], i & (blocks - 1)) = key_of(r, sample * stride - r.first);
    }
    cluster.sync();
  }

  /// Sorts the samples, each by as many threads as there are for it.
  __device__ void sort_samples(int samples) {
    constexpr int helpers = threads / intervals;
    const int sample = threadIdx.x / helpers;
    const Key key = sample < samples ? s.samples[sample] : ~Key{0};
    int rank = 0;
#pragma unroll 8
    for (int i = 0; i < intervals / helpers; ++i) {
      const int other = threadIdx.x % helpers + i * helpers;
      rank += other < samples && s.samples[other] < key;
    }
#pragma unroll
    for (int step = helpers / 2; step > 0; step /= 2) rank += __shfl_xor_sync(0xffffffffu, rank, step);
    if (threadIdx.x % helpers == 0) s.bounds[sample < samples ? rank : sample] = key;
    __syncthreads();
    if (threadIdx.x < intervals) {
      // Beyond the first and the last sample keys lie apart as between them, or further and further.
      const int bound = threadIdx.x;
      const bool inside = bound > 0 && bound < samples;
      const Key length = inside ? s.bounds[bound] - s.bounds[bound - 1] : s.bounds[samples - 1] - s.bounds[0];
      const float parts = static_cast<float>(inside ? Parts : -samples);
      s.parts_each[bound] = parts / (static_cast<float>(length) + 1);
    }
    __syncthreads();
  }

  /// Buckets rise with the keys: an interval between two bounds, and the part of it.
  __device__ int bucket_of(Key key) const {
    int interval = 0;
#pragma unroll
    for (int step = intervals / 2; step > 0; step /= 2) interval += s.bounds[interval + step - 1] <= key ? step : 0;
    const bool inside = s.parts_each[interval] > 0;
    const Key distance = interval == 0 ? s.bounds[0] - key : key - s.bounds[interval - 1];
    const float lengths = static_cast<float>(distance) * fabsf(s.parts_each[interval]);
    const int part = min(static_cast<int>(inside ? lengths : Parts * lengths / (1 + lengths)), Parts - 1);
    return interval * Parts + (interval == 0 ? Parts - 1 - part : part);
  }

  /// Sums over the block's threads in their order, from `total` on; `total` grows by all. Returns the sum before.
  __device__ int sum_before(int value, int& total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int sum = value;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int lower = __shfl_up_sync(0xffffffffu, sum, step);
      if (lane >= step) sum += lower;
    }
    if (lane == 31) s.warp_total[warp] = sum;
    __syncthreads();
    int others = lane < threads / 32 ? s.warp_total[lane] : 0;
    const int all = __reduce_add_sync(0xffffffffu, others);
    others = __reduce_add_sync(0xffffffffu, lane < warp ? others : 0);
    const int before = total + others + sum - value;
    total += all;
    __syncthreads();
    return before;
  }

  /// From the counts of all blocks: where each bucket begins, and this block's keys in it.
  __device__ void place_buckets(int players) {
    int total = 0;
#pragma unroll 1
    for (int tile = 0; tile < Own::buckets; tile += threads) {
      const int bucket = tile + threadIdx.x;
      int all = 0, lower = 0;
      if (bucket < Own::buckets) {
#pragma unroll 4
        for (int other = 0; other < blocks; ++other) {
          const int count = *cluster.map_shared_rank(&s.count[bucket], other);
          all += count;
          lower += other < block ? count : 0;
        }
      }
      const int first = sum_before(all, total);
      if (bucket < Own::buckets) {
        s.first[bucket] = static_cast<std::uint16_t>(first);
        s.next[bucket] = static_cast<std::uint16_t>(first + lower);
      }
    }
    if (threadIdx.x == 0) s.first[Own::buckets] = static_cast<std::uint16_t>(players);
    __syncthreads();
  }

  /// Sends each player to the block that its place by bucket belongs to.
  __device__ void distribute(const Round& r) {
    int bucket[Items], offset[Items];
#pragma unroll
    for (int item = 0; item < Items; ++item) {
      const int i = threadIdx.x + item * threads;
      if (i >= r.mine) continue;
      bucket[item] = bucket_of(key_of(r, i));
      offset[item] = atomicAdd(&s.count[bucket[item]], 1);
    }
    cluster.sync();  // counts are complete
    place_buckets(r.players);
    const auto reciprocal = reciprocal_of(r.segment);
#pragma unroll
    for (int item = 0; item < Items; ++item) {
      const int i = threadIdx.x + item * threads;
      if (i >= r.mine) continue;
      const int rank = s.next[bucket[item]] + offset[item];
      const int owner = quotient(rank, reciprocal), there = rank - owner * r.segment;
      const Ranked self = {s.score[i], s.leader[i], static_cast<std::uint16_t>(r.first + i),
                           static_cast<std::uint16_t>(s.first[bucket[item]]),
                           static_cast<std::uint16_t>(s.first[bucket[item] + 1] - 1)};
      const int place = Own::margin + there;
      *cluster.map_shared_rank(&s.ranked[place], owner) = self;
      if (there < Own::margin && owner > 0) *cluster.map_shared_rank(&s.ranked[place + r.segment], owner - 1) = self;
      if (there >= r.segment - Own::margin && owner + 1 < blocks)
        *cluster.map_shared_rank(&s.ranked[place - r.segment], owner + 1) = self;
    }
    cluster.sync();  // players are where they are ranked
  }

  __device__ Key key_of(const Ranked& player) const {
    return sort_key(player.score, a.keep_order ? player.leader : player.number);
  }

  /// Keys below `key` among the ranks from `from` to before `to` by bucket, read where they are.
  __device__ int count_below_afar(const Round& r, Key key, int from, int to) {
    int below = 0;
    while (from < to) {
      const int owner = from / r.segment, stop = min(to, (owner + 1) * r.segment);
      const auto* ranked = cluster.map_shared_rank(&s.ranked[Own::margin], owner);
#pragma unroll 8
      for (int i = from; i < stop; ++i) below += key_of(ranked[i - owner * r.segment]) < key;
      from = stop;
    }
    return below;
  }

  /// The same among the ranks of a bucket: most are known here.
  __device__ int count_below(const Round& r, Key key, int known, const Ranked& player) {
    const int begin = max(static_cast<int>(player.first), r.first - known);
    const int end = min(player.last + 1, r.first + r.mine + known);
    int below = count_below_afar(r, key, player.first, begin) + count_below_afar(r, key, end, player.last + 1);
#pragma unroll 4
    for (int i = begin; i < end; ++i) below += s.keys[Own::margin + i - r.first] < key;
    return below;
  }

  /// Ranks the players, and gives each block both players of the pairs that are its players in the next round.
  __device__ void meet(const Round& r, const Round& next) {
    const int stride = (r.players + most_samples - 1) / most_samples;
    share_samples(r, stride);
    sort_samples((r.players + stride - 1) / stride);
    distribute(r);
    for (int i = threadIdx.x; i < Own::buckets; i += threads) s.count[i] = 0;
    const int known = min(Own::margin, r.segment);
    for (int i = threadIdx.x; i < r.mine + 2 * known; i += threads) {
      const int place = Own::margin - known + i;
      s.keys[place] = key_of(s.ranked[place]);
    }
    __syncthreads();
    const auto reciprocal = reciprocal_of(next.segment);
#pragma unroll 1
    for (int i = threadIdx.x; i < r.mine; i += threads) {
      const Ranked self = s.ranked[Own::margin + i];
      const int rank = self.first + count_below(r, s.keys[Own::margin + i], known, self);
      const bool weaker = rank >= r.half;
      const int pair = !weaker ? rank : a.mirror ? r.players - 1 - rank : rank - r.half;
      const int owner = quotient(pair, reciprocal);
      *cluster.map_shared_rank(&s.pairs[weaker][pair - owner * next.segment], owner) = {self.score, self.leader,
                                                                                        self.number};
    }
    cluster.sync();  // pairs are complete
  }

  struct Steps {
    int4 raw[pair_items];
  };

  __device__ Steps read_steps(int number, const Round& second) const {
    Steps steps;
    const auto* all = reinterpret_cast<const int4*>(steps_of(a, batch, number));
#pragma unroll
    for (int item = 0; item < pair_items; ++item)
      if (static_cast<int>(threadIdx.x) + item * threads < second.mine) steps.raw[item] = __ldcg(all + pairs[item].node);
    return steps;
  }

  __device__ void take(const Steps& steps, int number) {
#pragma unroll
    for (int item = 0; item < pair_items; ++item) {
      const auto& raw = steps.raw[item];
      pairs[item].weight *= static_cast<Weight>(__hiloint2double(raw.y, raw.x));
      pairs[item].leaf |= (raw.z & 1) << number;
      pairs[item].node = raw.z >> 1;
      pairs[item].leader = raw.w;
    }
  }

  /// The pairs' scores become those of the next round's players.
  __device__ void settle(const Round& r, const Round& next, int real, int number) {
    auto* steps = steps_of(a, batch, number);
#pragma unroll
    for (int item = 0; item < pair_items; ++item) {
      const int i = threadIdx.x + item * threads;
      if (i >= next.mine) continue;
      const Player strong = s.pairs[0][i], weak = s.pairs[1][i];
      const int pair = next.first + i;
      const int weaker_rank = a.mirror ? r.players - 1 - pair : pair + r.half;
      const auto [share, given, mixed] = shares_of(strong.score, weak.score, log2_base, weaker_rank < real);
      s.score[i] = mixed;
      s.leader[i] = static_cast<std::uint16_t>(strong.leader);
      if (number == 0) {
        pairs[item] = {strong.number, weak.number, {static_cast<Weight>(share), static_cast<Weight>(given)}, pair, 0,
                       strong.leader, Weight(1)};
      } else {
        steps[strong.number] = {share, 2 * pair, strong.leader};
        steps[weak.number] = {given, 2 * pair + 1, strong.leader};
      }
    }
    __syncthreads();
  }

  /// Every block learns which source rows lead outputs, and how many stand before each 32 of them.
  __device__ void count_leaders(const Round& last, int words) {
    for (int i = threadIdx.x; i < last.mine * blocks; i += threads) {
      const int leader = s.leader[i / blocks];
      atomicOr(cluster.map_shared_rank(&s.count[leader / 32], i % blocks), 1 << (leader % 32));
    }
    cluster.sync();
    int total = 0;
#pragma unroll 1
    for (int tile = 0; tile < words; tile += threads) {
      const int w = tile + threadIdx.x;
      const int before = sum_before(w < words ? __popc(s.count[w]) : 0, total);
      if (w < words) s.first[w] = static_cast<std::uint16_t>(before);
    }
    __syncthreads();
  }

  __device__ std::int64_t slot_of(int leader, int player) const {
    if (!a.keep_order) return batch * a.slots + player;
    const unsigned lower = static_cast<unsigned>(s.count[leader / 32]) & ((1u << (leader % 32)) - 1);
    return batch * a.slots + s.first[leader / 32] + __popc(lower);
  }

  __device__ Leaf<Weight> leaf_of(int row, Weight weight) const {
    return {row < valid ? row : ~row, row < valid ? weight : Weight(0)};
  }

  /// Where there is no round each row is an output's only leaf.
  __device__ void write_rows(const Round& first) {
    for (int i = threadIdx.x; i < first.mine; i += threads)
      static_cast<Leaf<Weight>*>(a.leaves)[slot_of(s.leader[i], first.first + i)] = leaf_of(s.leader[i], 1);
  }

  __device__ void write_leaves(const Round& second) {
    if (a.rounds > 1) take(read_steps(a.rounds - 1, second), a.rounds - 1);
#pragma unroll
    for (int item = 0; item < pair_items; ++item) {
      if (static_cast<int>(threadIdx.x) + item * threads >= second.mine) continue;
      const auto& pair = pairs[item];
      const auto place = (slot_of(pair.leader, pair.node) << (a.rounds - 1)) + pair.leaf / 2;
      static_cast<LeafPair<Weight>*>(a.leaves)[place] = {leaf_of(pair.stronger, pair.weight * pair.part[0]),
                                                         leaf_of(pair.weaker, pair.weight * pair.part[1])};
    }
  }

  __device__ void write_outputs(const Round& last) {
    count_leaders(last, static_cast<int>((padded + 31) / 32));
    for (int i = threadIdx.x; i < last.mine; i += threads) {
      const auto slot = slot_of(s.leader[i], last.first + i);
      const bool empty = s.leader[i] >= valid;
      static_cast<Score*>(a.slot_scores)[slot] = empty ? Score(0) : static_cast<Score>(s.score[i]);
      a.positions[slot] = empty ? -1 : s.leader[i];
    }
    if (a.rounds == 0) write_rows(last);
    else write_leaves(round_of(padded, 1, blocks, block));
  }

  __device__ void play() {
    auto r = round_of(padded, 0, blocks, block);
    const auto* scores = static_cast<const Score*>(a.scores) + batch * a.length;
    for (int i = threadIdx.x; i < r.mine; i += threads) {
      const int row = r.first + i;
      const double score = row < valid ? static_cast<double>(scores[row]) : -infinity();
      s.score[i] = isnan(score) ? -infinity() : score;
      s.leader[i] = static_cast<std::uint16_t>(row);
    }
    for (int i = threadIdx.x; i < Own::buckets; i += threads) s.count[i] = 0;
    cluster.sync();
    int real = valid;
    const auto second = round_of(padded, 1, blocks, block);
#pragma unroll 1
    for (int number = 0; number < a.rounds; ++number) {
      const auto next = round_of(padded, number + 1, blocks, block);
      meet(r, next);
      // The steps of the round before: the meeting's last barrier came after them, and their way is as long as settling.
      Steps steps;
      if (number > 1) steps = read_steps(number - 1, second);
      settle(r, next, real, number);
      if (number > 1) take(steps, number - 1);
      real = min(real, r.half);
      r = next;
    }
    write_outputs(r);
  }
};

template <class Score, class Weight, int Items, int Parts>
__global__ void __launch_bounds__(threads, 1) tournament_kernel(SuccessiveHalvingArguments a, double log2_base) {
  using Part = Contest<Score, Weight, Items, Parts>;
  extern __shared__ __align__(16) unsigned char memory[];
  auto cluster = cg::this_cluster();
  const int blocks = static_cast<int>(cluster.num_blocks());
  const std::int64_t batch = blockIdx.x / blocks;
  Part part{a,
            *reinterpret_cast<typename Part::Own*>(memory),
            cluster,
            blocks,
            static_cast<int>(cluster.block_rank()),
            batch,
            a.slots << a.rounds,
            valid_rows(a, batch),
            log2_base};
  asm volatile("griddepcontrol.launch_dependents;");
  part.play();
}

template <class Score, class Weight, int Items, int Parts>
cudaError_t prepare_tournament() {
  const auto kernel = tournament_kernel<Score, Weight, Items, Parts>;
  static_assert(sizeof(Segment<threads * Items, Parts>) <= 227 * 1024, "more than the shared memory of a block");
  if (auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(sizeof(Segment<threads * Items, Parts>))))
    return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

template <class Score, class Weight, int Items, int Parts>
cudaError_t launch_tournament(const SuccessiveHalvingArguments& a, int blocks, cudaStream_t stream) {
  if (auto error = prepare_tournament<Score, Weight, Items, Parts>()) return error;
  ClusterLaunch launch(a.batch, blocks, threads, sizeof(Segment<threads * Items, Parts>), stream);
  return cudaLaunchKernelEx(&launch.config, tournament_kernel<Score, Weight, Items, Parts>, a, std::log2(a.base));
}

/// Blocks of a cluster: one player a thread, as long as all clusters run at once and up to the portable size; then as few
/// as hold the row.
int blocks_of(std::int64_t batch, std::int64_t padded) {
  int blocks = 1;
  // A tenth of the processors is lost to clusters that do not fit into what is left of a group of processors.
  while (blocks < portable_cluster && blocks * threads < padded &&
         batch * blocks * 2 <= processors() * (blocks > 2 ? 9 : 10) / 10)
    blocks *= 2;
  while (static_cast<std::int64_t>(blocks) * largest_segment < padded) blocks *= 2;
  return blocks;
}

template <class Score, class Weight>
cudaError_t launch_tournament(const SuccessiveHalvingArguments& a, cudaStream_t stream) {
  const std::int64_t padded = a.slots << a.rounds;
  const int blocks = blocks_of(a.batch, padded);
  const auto segment = (padded + blocks - 1) / blocks;
  if (segment <= threads) return launch_tournament<Score, Weight, 1, 16>(a, blocks, stream);
  if (segment <= 2 * threads) return launch_tournament<Score, Weight, 2, 16>(a, blocks, stream);
  return launch_tournament<Score, Weight, 4, 32>(a, blocks, stream);
}

}  // namespace

std::int64_t longest_cluster_tournament() { return static_cast<std::int64_t>(largest_cluster) * largest_segment; }

std::int64_t cluster_workspace(const SuccessiveHalvingArguments& a) {
  const auto steps = std::max(std::int64_t{0}, (a.slots << a.rounds) - 2 * a.slots);
  return a.batch * steps * static_cast<std::int64_t>(sizeof(TournamentStep));
}

cudaError_t cluster_tournament(const SuccessiveHalvingArguments& a, cudaStream_t stream) {
  const bool float64 = a.element == Element::float64;
  if (a.float64_scores)
    return float64 ? launch_tournament<double, double>(a, stream) : launch_tournament<double, float>(a, stream);
  return float64 ? launch_tournament<float, double>(a, stream) : launch_tournament<float, float>(a, stream);
}

}  // namespace transpool

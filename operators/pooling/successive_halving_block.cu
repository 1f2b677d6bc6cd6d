#include "operators/pooling/successive_halving_tournament.cuh"

#include <cooperative_groups.h>

#include <algorithm>
#include <cmath>

namespace transpool {
namespace {

namespace cg = cooperative_groups;

constexpr int threads = 1024;
constexpr int most_items = 11;      // players a thread: what shared memory holds
constexpr int most_blocks = 8;      // of a cluster: the portable size
constexpr int wide_players = 2048;  // a first round of more is shared by the blocks of a cluster
constexpr int sorters = 4;          // of a sample
constexpr int intervals = 64;       // of a round's values, each cut into buckets
constexpr int most_buckets = 8192;
constexpr int index_bits = 14;

__device__ float value_of_bits(unsigned rising) { return __uint_as_float(rising >> 31 ? rising & 0x7fffffffu : ~rising); }

/// A key of 64 bits is the value of a player, who wins a tie, and who it is. Values are scores negated, as they are
/// compared: keys rise as scores fall.
__device__ Key sort_key(float value, unsigned tie, unsigned player) {
  return static_cast<Key>(rising_bits(value)) << 32 | (tie << index_bits | player);
}

__device__ unsigned player_of(Key key) { return static_cast<unsigned>(key) & ((1u << index_bits) - 1); }

/// Two players of a round that met, and what the weaker makes up of the pair.
template <class Weight>
struct alignas(2 * sizeof(Weight)) Meeting {
  std::uint16_t stronger, weaker;
  Weight given;
};

/// Who played where the tree of an output has a node: how much of the output it is, and its first leaf.
template <class Weight>
struct alignas(2 * sizeof(Weight)) Node {
  Weight weight;
  std::int32_t leaf;
};

/// What a block has in its shared memory for a row of `Capacity` players. In the first round `room` holds the rows' values,
/// then the keys by bucket; from then on `room` holds the players' scores and leaders, and `keys` both forms of their keys.
template <int Capacity, class Weight>
struct alignas(16) Table {
  static constexpr std::size_t least_bytes = Capacity * (2 * sizeof(Key) + 2) + 2 * most_buckets + 3072;
  static constexpr bool holds_meetings = least_bytes + Capacity * sizeof(Meeting<Weight>) <= 227 * 1024;

  Key keys[Capacity];
  union {
    float value[Capacity];
    Key room[Capacity];
    struct {
      double odd_score[Capacity / 2], even_score[Capacity / 4];
      std::uint16_t odd_leader[Capacity / 2], even_leader[Capacity / 4];
    };
  };
  std::uint16_t bucket[Capacity];                   // by place
  alignas(16) std::uint16_t end[most_buckets + 8];  // of a bucket: counts, then where it begins, then where it ends
  Meeting<Weight> meetings[holds_meetings ? Capacity : 1];
  alignas(16) float samples[intervals];
  float tree[intervals];        // the samples as a search tree: the children of i are 2 i and 2 i + 1
  float low[intervals + 1];     // the value at which each interval begins
  float parts_each[intervals];  // buckets of an interval over its length
  int equals_from[intervals];   // the first of the intervals that begin at the same value, less 1
  unsigned lowest, highest;     // of the first round's values, as rising bits
  int edge[4];                  // groups of buckets in which this block's ranks begin and end
  std::uint16_t leaders_before[Capacity / 32];
  int warp_total[threads / 32];
};

/// The tournament of one batch row by the blocks of a cluster: in the first round each block ranks all players roughly and
/// some of them exactly, then the first block goes on alone. Loops stay rolled: a round's instructions are
/// fetched anew unless all of them fit the innermost cache.
template <class Score, class Weight, int Items>
struct Contest {
  static constexpr int capacity = threads * Items;
  using Own = Table<capacity, Weight>;

  const SuccessiveHalvingArguments& a;
  Own& s;
  cg::cluster_group cluster;
  const int blocks, block;
  const std::int64_t batch;
  const int padded, valid;
  const double log2_base;
  Meeting<Weight>* meetings;  // of the round

  __device__ double* scores_of(int number) const { return number % 2 ? s.odd_score : s.even_score; }
  __device__ std::uint16_t* leaders_of(int number) const { return number % 2 ? s.odd_leader : s.even_leader; }
  __device__ double row_score(int row) const {
    const double score =
        row < valid ? static_cast<double>(static_cast<const Score*>(a.scores)[batch * a.length + row]) : -infinity();
    return isnan(score) ? -infinity() : score;
  }

  /// Sums over the block's threads in their order, of whom the first `many` have any. Returns the sum before.
  __device__ int sum_before(int value, int many) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int sum = value;
    if (warp * 32 < many) {
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int lower = __shfl_up_sync(0xffffffffu, sum, step);
        if (lane >= step) sum += lower;
      }
    }
    if (lane == 31) s.warp_total[warp] = sum;
    __syncthreads();
    if (warp * 32 >= many) return 0;
    return __reduce_add_sync(0xffffffffu, lane < warp ? s.warp_total[lane] : 0) + sum - value;
  }

  __device__ void clear_counts() {
    for (int i = threadIdx.x; i < most_buckets / 8; i += threads) reinterpret_cast<uint4*>(s.end)[i] = uint4{0, 0, 0, 0};
  }

  /// The rows' values, and their extremes.
  __device__ void read_values() {
    float value[Items];
#pragma unroll
    for (int item = 0; item < Items; ++item) value[item] = -static_cast<float>(row_score(threadIdx.x + item * threads));
    // While these come:
    clear_counts();
    if (threadIdx.x == 0) {
      s.lowest = ~0u;
      s.highest = 0;
    }
    __syncthreads();
    unsigned lowest = ~0u, highest = 0;
#pragma unroll
    for (int item = 0; item < Items; ++item) {
      const int row = threadIdx.x + item * threads;
      if (row >= padded) break;
      s.value[row] = value[item];
      lowest = min(lowest, rising_bits(value[item]));
      if (value[item] < static_cast<float>(infinity())) highest = max(highest, rising_bits(value[item]));
    }
    lowest = __reduce_min_sync(0xffffffffu, lowest);
    highest = __reduce_max_sync(0xffffffffu, highest);
    if (threadIdx.x % 32 == 0) {
      atomicMin(&s.lowest, lowest);
      atomicMax(&s.highest, highest);
    }
    __syncthreads();
  }

  __device__ float value_of(int number, unsigned player) const {
    return number == 0 ? s.value[player] : -static_cast<float>(scores_of(number)[player]);
  }

  /// An odd number of players apart, so that they are in different banks. The last is none: it stays last.
  __device__ float sample_of(int sample, int players, int number) const {
    const int player = sample * max(1, (players / intervals - 1) | 1);
    return sample + 1 < intervals && player < players ? value_of(number, player) : static_cast<float>(infinity());
  }

  /// Sorts the samples, by `sorters` threads a sample.
  __device__ void sort_samples(int number) {
    constexpr int each = intervals / sorters;
    const int sample = threadIdx.x / sorters, part = threadIdx.x % sorters;
    const float own = s.samples[sample];
    int below = 0;  // and in its upper half equal ones that come first
#pragma unroll
    for (int i = 0; i < each; i += 4) {
      const auto four = *reinterpret_cast<const float4*>(&s.samples[part * each + i]);
      const float* theirs = &four.x;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        below += theirs[j] < own;
        below += theirs[j] == own && part * each + i + j < sample ? 0x10000 : 0;
      }
    }
#pragma unroll
    for (int step = sorters / 2; step > 0; step /= 2) below += __shfl_xor_sync(0xffffffffu, below, step);
    const int above = (below & 0xffff) + (below >> 16) + 1, zeros = __ffs(above) - 1;
    if (part == 0 && above < intervals) {
      s.tree[(intervals / 2 >> zeros) + (above >> (zeros + 1))] = own;
      s.low[above] = own;
      s.equals_from[above] = below & 0xffff;
    }
    if (threadIdx.x == 1) {
      s.low[0] = number == 0 ? value_of_bits(s.lowest) : value_of(number, 0);
      s.equals_from[0] = -1;
      s.low[intervals] = static_cast<float>(infinity());
    }
  }

  /// Sorts samples of the values, and measures the intervals between them.
  __device__ void make_intervals(int players, int real, int number, int log2_parts) {
    if (threadIdx.x < intervals) s.samples[threadIdx.x] = sample_of(threadIdx.x, players, number);
    __syncthreads();
    if (threadIdx.x < intervals * sorters) sort_samples(number);
    __syncthreads();
    if (threadIdx.x < intervals) {
      // After the first round players come nearly in order.
      const float highest = number == 0 ? value_of_bits(s.highest) : value_of(number, max(real, 1) - 1);
      const float length = fminf(s.low[threadIdx.x + 1], highest) - s.low[threadIdx.x];
      s.parts_each[threadIdx.x] = length > 0 ? __fdividef(static_cast<float>(1 << log2_parts), length) : 0;
    }
    __syncthreads();
  }

  /// Buckets rise with values, and of equal ones with who wins the tie: an interval between two samples, and one of its
  /// 2^log2_parts parts. Where several samples are equal, the buckets between them are for those that equal them.
  __device__ unsigned bucket_of(float value, unsigned tie, int log2_parts, int log2_ties) const {
    const char* tree = reinterpret_cast<const char*>(s.tree);
    unsigned offset = sizeof(float);
#pragma unroll
    for (int step = intervals / 2; step > 0; step /= 2)
      offset = 2 * offset + (*reinterpret_cast<const float*>(tree + offset) <= value ? sizeof(float) : 0);
    const unsigned interval = offset / sizeof(float) - intervals;
    const float low = s.low[interval];
    if (value == low) {
      const unsigned from = static_cast<unsigned>(s.equals_from[interval] + 1);
      const unsigned room = interval > from ? interval - from : 0;
      return (from << log2_parts) + (tie * (room << log2_parts) >> log2_ties);
    }
    const unsigned part = __float2uint_rz((value - low) * s.parts_each[interval]);
    return (interval << log2_parts) + min(part, (1u << log2_parts) - 1);
  }

  /// Makes the keys, with their buckets where their players will be, and counts those of each bucket.
  __device__ void count(int players, int number, int log2_parts) {
    auto* counts = reinterpret_cast<unsigned*>(s.end);
    const bool by_leader = a.keep_order && number > 0;
    const int log2_ties = 32 - __clz(padded - 1);
#pragma unroll 2
    for (unsigned i = threadIdx.x; i < static_cast<unsigned>(players); i += threads) {
      const float value = value_of(number, i);
      const unsigned tie = by_leader ? leaders_of(number)[i] : i;
      const unsigned bucket = bucket_of(value, tie, log2_parts, log2_ties);
      atomicAdd(counts + bucket / 2, bucket % 2 ? 0x10000u : 1u);
      s.keys[i] = sort_key(value, tie, bucket);
    }
    __syncthreads();
  }

  struct Ranks {
    int from, to;
  };

  /// Counts become the ranks at which buckets begin. Groups of eight know whether ranks of this block begin or end in them.
  __device__ void place_buckets(int buckets, Ranks pairs, Ranks other) {
    auto* words = reinterpret_cast<uint4*>(s.end) + threadIdx.x;
    const bool mine = static_cast<int>(threadIdx.x) * 8 < buckets;
    uint4 raw = mine ? *words : uint4{0, 0, 0, 0};
    unsigned* word = &raw.x;
    unsigned sum = 0;
#pragma unroll
    for (int w = 0; w < 4; ++w) sum += word[w];
    const int all = static_cast<int>((sum & 0xffff) + (sum >> 16));
    unsigned before = sum_before(all, buckets / 8);
    const auto holds = [&](int rank) { return static_cast<unsigned>(rank) - before < static_cast<unsigned>(all); };
    if (holds(pairs.from)) s.edge[0] = threadIdx.x;
    if (holds(pairs.to - 1)) s.edge[1] = threadIdx.x;
    if (holds(other.from)) s.edge[2] = threadIdx.x;
    if (holds(other.to - 1)) s.edge[3] = threadIdx.x;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const unsigned counts = word[w];
      word[w] = before * 0x10001u + (counts << 16);
      before += (counts & 0xffff) + (counts >> 16);
    }
    if (mine) *words = raw;
    __syncthreads();
  }

  /// Puts the keys where their buckets are: all, or those of the groups from those in which this block's ranks begin, and
  /// the group before, to those in which they end.
  __device__ void place(int players, bool all, Key* by_bucket) {
    auto* ends = reinterpret_cast<unsigned*>(s.end);
    const int first = s.edge[0] - 1, last = s.edge[1], other_first = s.edge[2] - 1, other_last = s.edge[3];
#pragma unroll 2
    for (unsigned i = threadIdx.x; i < static_cast<unsigned>(players); i += threads) {
      const Key key = s.keys[i];
      const unsigned bucket = player_of(key), shift = bucket % 2 * 16;
      const int group = static_cast<int>(bucket / 8);
      if (!all && (group < first || group > last) && (group < other_first || group > other_last)) continue;
      const unsigned at = atomicAdd(ends + bucket / 2, 1u << shift) >> shift & 0xffff;
      by_bucket[at] = key ^ (bucket ^ i);
      s.bucket[at] = static_cast<std::uint16_t>(bucket);
    }
    __syncthreads();
  }

  __device__ unsigned begin_of(unsigned bucket) const { return bucket == 0 ? 0 : s.end[bucket - 1]; }

  /// Puts the keys in order whose ranks this block settles: those of `pairs`, and of `other` whom they meet.
  __device__ void rank(int players, Ranks pairs, Ranks other, const Key* by_bucket) {
    Ranks upper{0, players}, lower{players, players};
    if (pairs.to - pairs.from < players / 2) {
      const auto whole = [&](Ranks r) {
        return Ranks{static_cast<int>(begin_of(s.bucket[r.from])), s.end[s.bucket[r.to - 1]]};
      };
      upper = whole(pairs);
      lower = whole(other);
      if (upper.to >= lower.from) {
        upper.to = max(upper.to, lower.to);
        lower = {players, players};
      }
    }
    const int many = upper.to - upper.from, both = many + lower.to - lower.from, gap = lower.from - upper.to;
#pragma unroll 1
    for (int i = threadIdx.x; i < both; i += threads) {
      const unsigned at = static_cast<unsigned>(upper.from + i + (i < many ? 0 : gap)), bucket = s.bucket[at];
      const unsigned end = s.end[bucket], begin = begin_of(bucket);
      const Key key = by_bucket[at];
      unsigned place = begin;
#pragma unroll 1
      for (unsigned j = begin; j < end; ++j) place += by_bucket[j] < key;
      s.keys[place] = key;
    }
    __syncthreads();
  }

  __device__ double score_at(Key key, int number) const {
    if (number > 0) return scores_of(number)[player_of(key)];
    if constexpr (sizeof(Score) == 8) return row_score(static_cast<int>(player_of(key)));
    return -static_cast<double>(value_of_bits(static_cast<unsigned>(key >> 32)));
  }

  /// The scores of pairs become those of the next round's players: here or, if it is shared, in the first block.
  __device__ void settle(int players, int real, int number, Ranks pairs, bool shared) {
    const int half = players / 2;
#pragma unroll 1
    for (int pair = pairs.from + threadIdx.x; pair < pairs.to; pair += threads) {
      const int weaker_rank = a.mirror ? players - 1 - pair : pair + half;
      const Key strong = s.keys[pair], weak = s.keys[weaker_rank];
      const auto stronger = static_cast<std::uint16_t>(player_of(strong)),
                 weaker = static_cast<std::uint16_t>(player_of(weak));
      const auto [share, given, mixed] =
          shares_of(score_at(strong, number), score_at(weak, number), log2_base, weaker_rank < real);
      const std::uint16_t lead = number == 0 ? stronger : leaders_of(number)[stronger];
      const Meeting<Weight> meeting{stronger, weaker, static_cast<Weight>(given)};
      auto* score = scores_of(number + 1) + pair;
      auto* leader = leaders_of(number + 1) + pair;
      auto* noted = meetings + pair;
      if (shared) {
        *cluster.map_shared_rank(score, 0) = mixed;
        *cluster.map_shared_rank(leader, 0) = lead;
        *(Own::holds_meetings ? cluster.map_shared_rank(noted, 0) : noted) = meeting;
      } else {
        *score = mixed;
        *leader = lead;
        *noted = meeting;
      }
    }
    meetings += half;
  }

  __device__ void play_round(int players, int real, int number, bool shared) {
    int log2_parts = 3;
    while (intervals << log2_parts < min(2 * players, most_buckets)) ++log2_parts;
    Key* by_bucket = number == 0 ? s.room : s.keys + players;
    const int half = players / 2, each = shared ? (half + blocks - 1) / blocks : half;
    const Ranks pairs{block * each, min(half, (block + 1) * each)};
    const Ranks other =
        a.mirror ? Ranks{players - pairs.to, players - pairs.from} : Ranks{half + pairs.from, half + pairs.to};
    make_intervals(players, real, number, log2_parts);
    count(players, number, log2_parts);
    place_buckets(intervals << log2_parts, pairs, other);
    place(players, !shared, by_bucket);
    rank(players, pairs, other, by_bucket);
    // The first block has ranked, in the room where the scores go.
    if (shared) cluster.barrier_arrive();
    clear_counts();
    if (shared) cluster.barrier_wait();
    settle(players, real, number, pairs, shared);
    if (shared) cluster.sync();
    else __syncthreads();
  }

  __device__ int slot_of(int leader, int player) const {
    if (!a.keep_order) return player;
    const unsigned word = reinterpret_cast<const unsigned*>(s.end)[leader / 32];
    return s.leaders_before[leader / 32] + __popc(word & ((1u << (leader % 32)) - 1));
  }

  __device__ Leaf<Weight> leaf_of(int row, Weight weight) const {
    return {row < valid ? row : ~row, row < valid ? weight : Weight(0)};
  }

  __device__ void write_output(int slot, int leader, double score) const {
    const bool empty = leader >= valid;
    static_cast<Score*>(a.slot_scores)[batch * a.slots + slot] = empty ? Score(0) : static_cast<Score>(score);
    a.positions[batch * a.slots + slot] = empty ? -1 : leader;
  }

  /// Numbers the outputs, and makes them the nodes of the last round.
  __device__ void write_outputs(Node<Weight>* nodes) {
    constexpr bool fits_beside = sizeof(Node<Weight>) == sizeof(Key);  // the scores and leaders, which are read here
    const auto* leader = leaders_of(a.rounds);
    auto* bits = reinterpret_cast<unsigned*>(s.end);
    const int players = static_cast<int>(a.slots);
    for (int i = threadIdx.x; i < players; i += threads) atomicOr(bits + leader[i] / 32, 1u << (leader[i] % 32));
    __syncthreads();
    const bool word = static_cast<int>(threadIdx.x) < (padded + 31) / 32;
    const int before = sum_before(word ? __popc(bits[threadIdx.x]) : 0, (padded + 31) / 32);
    if (word) s.leaders_before[threadIdx.x] = static_cast<std::uint16_t>(before);
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < players; i += threads) {
      const int slot = slot_of(leader[i], i);
      write_output(slot, leader[i], scores_of(a.rounds)[i]);
      if constexpr (fits_beside) nodes[i] = {Weight(1), slot << a.rounds};
      else s.bucket[i] = static_cast<std::uint16_t>(slot);
    }
    __syncthreads();
    if constexpr (!fits_beside) {
#pragma unroll 1
      for (int i = threadIdx.x; i < players; i += threads) nodes[i] = {Weight(1), s.bucket[i] << a.rounds};
      __syncthreads();
    }
  }

  /// Another place of the same eight: neighbours in rank are likely to be the same leaf of their outputs, in one bank.
  __device__ static int swizzled(int pair) { return pair ^ (pair >> 3 & 7); }

  /// Hands each node's weight and first leaf down to the two that met in it. Leaves are put in order where there is room.
  __device__ void write_leaves() {
    constexpr bool ordered = sizeof(Leaf<Weight>) == sizeof(Key);
    auto* nodes = reinterpret_cast<Node<Weight>*>(s.keys);
    const auto nodes_of = [&](int number) { return nodes + (number % 2 ? 0 : capacity / 2); };
    auto* leaves = static_cast<LeafPair<Weight>*>(a.leaves) + batch * padded / 2;
    auto* pairs = ordered ? reinterpret_cast<LeafPair<Weight>*>(s.room) : leaves;
    write_outputs(nodes_of(a.rounds));
    int half = static_cast<int>(a.slots);
#pragma unroll 1
    for (int number = a.rounds - 1; number >= 0; --number) {
      meetings -= half;
      const auto* above = nodes_of(number + 1);
      auto* below = nodes_of(number);
#pragma unroll 1
      for (int pair = threadIdx.x; pair < half; pair += threads) {
        const auto [stronger, weaker, given] = meetings[pair];
        const auto [weight, leaf] = above[pair];
        const Weight kept = weight * (1 - given), rest = weight * given;
        if (number == 0) {
          pairs[ordered ? swizzled(leaf / 2) : leaf / 2] = {leaf_of(stronger, kept), leaf_of(weaker, rest)};
        } else {
          below[stronger] = {kept, leaf};
          below[weaker] = {rest, leaf | 1 << number};
        }
      }
      half *= 2;
      __syncthreads();
    }
    if (ordered)
      for (int pair = threadIdx.x; pair < padded / 2; pair += threads) leaves[pair] = pairs[swizzled(pair)];
  }

  /// Where there is no round each row is an output and its only leaf.
  __device__ void write_rows() const {
    for (int row = threadIdx.x; row < padded; row += threads) {
      write_output(row, row, row_score(row));
      static_cast<Leaf<Weight>*>(a.leaves)[batch * padded + row] = leaf_of(row, 1);
    }
  }

  __device__ void play() {
    meetings = Own::holds_meetings ? s.meetings : static_cast<Meeting<Weight>*>(a.workspace) + batch * (padded - a.slots);
    read_values();
    int players = padded, real = valid;
#pragma unroll 1
    for (int number = 0; number < a.rounds; ++number) {
      play_round(players, real, number, number == 0 && blocks > 1);
      if (block > 0) return;
      players /= 2;
      real = min(real, players);
    }
    write_leaves();
  }
};

template <class Score, class Weight, int Items>
__global__ void __launch_bounds__(threads, 1) block_kernel(SuccessiveHalvingArguments a, double log2_base) {
  using Part = Contest<Score, Weight, Items>;
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
            static_cast<int>(a.slots << a.rounds),
            valid_rows(a, batch),
            log2_base,
            nullptr};
  asm volatile("griddepcontrol.launch_dependents;");
  if (a.rounds > 0) part.play();
  else if (part.block == 0) part.write_rows();
}

template <class Score, class Weight, int Items>
cudaError_t launch(const SuccessiveHalvingArguments& a, int blocks, cudaStream_t stream) {
  const auto kernel = block_kernel<Score, Weight, Items>;
  constexpr auto bytes = sizeof(Table<threads * Items, Weight>);
  static_assert(bytes <= 227 * 1024, "more than the shared memory of a block");
  if (auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)))
    return error;
  ClusterLaunch launch(a.batch, blocks, threads, bytes, stream);
  return cudaLaunchKernelEx(&launch.config, kernel, a, std::log2(a.base));
}

/// As many blocks a row as find room all at once.
int blocks_of(std::int64_t batch, std::int64_t padded) {
  int blocks = 1;
  // A tenth of the processors is lost to clusters that do not fit into what is left of a group of processors.
  while (padded > wide_players && blocks < most_blocks && batch * blocks * 2 <= processors() * 9 / 10) blocks *= 2;
  return blocks;
}

/// call<Items>() for rows of so many players.
template <class Call>
auto by_items(std::int64_t padded, Call call) {
  if (padded <= 2 * threads) return call.template operator()<2>();
  if (padded <= 4 * threads) return call.template operator()<4>();
  if (padded <= 8 * threads) return call.template operator()<8>();
  return call.template operator()<most_items>();
}

template <class Score, class Weight>
cudaError_t launch(const SuccessiveHalvingArguments& a, cudaStream_t stream) {
  const std::int64_t padded = a.slots << a.rounds;
  const int blocks = blocks_of(a.batch, padded);
  return by_items(padded, [&]<int Items>() { return launch<Score, Weight, Items>(a, blocks, stream); });
}

/// Bytes of the meetings of all rounds where they stay out of shared memory.
template <class Weight>
std::int64_t workspace(const SuccessiveHalvingArguments& a) {
  const std::int64_t padded = a.slots << a.rounds;
  const bool inside = by_items(padded, [&]<int Items>() { return Table<threads * Items, Weight>::holds_meetings; });
  return inside ? 0 : a.batch * (padded - a.slots) * static_cast<std::int64_t>(sizeof(Meeting<Weight>));
}

}  // namespace

std::int64_t longest_block_tournament() { return most_items * threads; }

std::int64_t block_workspace(const SuccessiveHalvingArguments& a) {
  return a.element == Element::float64 ? workspace<double>(a) : workspace<float>(a);
}

cudaError_t block_tournament(const SuccessiveHalvingArguments& a, cudaStream_t stream) {
  const bool float64 = a.element == Element::float64;
  if (a.float64_scores) return float64 ? launch<double, double>(a, stream) : launch<double, float>(a, stream);
  return float64 ? launch<float, double>(a, stream) : launch<float, float>(a, stream);
}

}  // namespace transpool

#include "operators/pooling/successive_halving_tournament.cuh"

#include <cub/device/device_radix_sort.cuh>

#include <algorithm>
#include <bit>
#include <cmath>
#include <type_traits>
#include <utility>

namespace transpool {
namespace {

constexpr std::int64_t longest_row = std::int64_t{1} << 20;
constexpr std::int64_t most_players = std::int64_t{1} << 22;  // of the batch rows that play at once: bounds the workspace
constexpr int threads = 256;
constexpr int score_bits = 32;

/// A source row that has not lost yet: its score, and its number among the players of all batch rows that play at once; in
/// the end that of its output.
struct alignas(16) Standing {
  double score;
  std::int32_t number;
};

/// Two source rows that met in the first round, and what the stronger makes up of the pair.
struct alignas(16) FirstPair {
  std::int32_t stronger, weaker;
  double share;
};

/// Batch rows that play at once, and their workspace. A key is, from its highest bits on, a batch row, a score as it is
/// compared, and the source row that leads the player: sorting is stable and players come by their numbers, so that where
/// numbers decide ties the lowest bits take no part.
struct Part {
  std::int64_t first = 0;  // batch row
  int rows = 0;            // of the batch
  int padded = 0;
  int row_bits = 0, batch_bits = 0;
  Key* keys[2] = {};
  Standing* standings = nullptr;    // by source row
  FirstPair* pairs = nullptr;       // by pair
  TournamentStep* steps = nullptr;  // by player, of one round after another from the second on
  void* sorting = nullptr;
  std::size_t sorting_bytes = 0;

  __device__ Key key_of(int batch, double score, int row) const {
    const auto falling = rising_bits(-static_cast<float>(score));
    return (static_cast<Key>(batch) << score_bits | falling) << row_bits | static_cast<Key>(row);
  }
  __device__ Key key_of(int batch, int row) const { return static_cast<Key>(batch) << row_bits | static_cast<Key>(row); }
  __device__ int row_of(Key key) const { return static_cast<int>(key & ((Key{1} << row_bits) - 1)); }
  __device__ TournamentStep* steps_of(int number) const { return steps + rows * (padded - 2 * (padded >> number)); }
};

template <class Score>
__global__ void __launch_bounds__(threads) read_scores(SuccessiveHalvingArguments a, Part part) {
  const int i = static_cast<int>(blockIdx.x) * threads + static_cast<int>(threadIdx.x);
  if (i >= part.rows * part.padded) return;
  const int b = i / part.padded, row = i - b * part.padded;
  const auto batch = part.first + b;
  const double given = row < valid_rows(a, batch)
                           ? static_cast<double>(static_cast<const Score*>(a.scores)[batch * a.length + row])
                           : -infinity();
  const double score = isnan(given) ? -infinity() : given;
  part.standings[i] = {score, i};
  part.keys[0][i] = part.key_of(b, score, row);
}

/// One thread a pair of round `number`: it becomes a player of the next one, led by the stronger, and numbered by rank.
__global__ void __launch_bounds__(threads)
    settle(SuccessiveHalvingArguments a, Part part, const Key* ranked, Key* next, int number, double log2_base) {
  const int players = part.padded >> number, half = players / 2;
  const int i = static_cast<int>(blockIdx.x) * threads + static_cast<int>(threadIdx.x);
  if (i >= part.rows * half) return;
  const int b = i / half, pair = i - b * half;
  const int weaker_rank = a.mirror ? players - 1 - pair : pair + half;
  const int stronger = part.row_of(ranked[b * players + pair]), weaker = part.row_of(ranked[b * players + weaker_rank]);
  const int leader = b * part.padded + stronger;
  const Standing strong = part.standings[leader], weak = part.standings[b * part.padded + weaker];
  const bool real = weaker_rank < valid_rows(a, part.first + b);
  const auto [share, given, mixed] = shares_of(strong.score, weak.score, log2_base, real);
  if (number == 0) {
    part.pairs[i] = {stronger, weaker, share};
  } else {
    auto* steps = part.steps_of(number);
    steps[strong.number] = {share, 2 * i, leader};
    steps[weak.number] = {given, 2 * i + 1, leader};
  }
  part.standings[leader] = {mixed, i};
  next[i] = number + 1 < a.rounds ? part.key_of(b, mixed, stronger) : part.key_of(b, stronger);
}

template <class Score>
__global__ void __launch_bounds__(threads) write_outputs(SuccessiveHalvingArguments a, Part part, const Key* ordered) {
  const int slots = static_cast<int>(a.slots);
  const int i = static_cast<int>(blockIdx.x) * threads + static_cast<int>(threadIdx.x);
  if (i >= part.rows * slots) return;
  const int b = i / slots, leader = part.row_of(ordered[i]);
  auto& standing = part.standings[b * part.padded + leader];
  const bool empty = leader >= valid_rows(a, part.first + b);
  const auto slot = part.first * slots + i;
  static_cast<Score*>(a.slot_scores)[slot] = empty ? Score(0) : static_cast<Score>(standing.score);
  a.positions[slot] = empty ? -1 : leader;
  standing.number = i;
}

template <class Weight>
__device__ Leaf<Weight> leaf_of(int row, int valid, Weight weight) {
  return {row < valid ? row : ~row, row < valid ? weight : Weight(0)};
}

/// One thread a pair of the first round, on its way to its output.
template <class Weight>
__global__ void __launch_bounds__(threads) write_leaves(SuccessiveHalvingArguments a, Part part) {
  const int half = part.padded / 2;
  const int i = static_cast<int>(blockIdx.x) * threads + static_cast<int>(threadIdx.x);
  if (i >= part.rows * half) return;
  const auto [stronger, weaker, share] = part.pairs[i];
  const int b = i / half, valid = valid_rows(a, part.first + b);
  int node = i, leaf = 0, leader = b * part.padded + stronger;
  Weight weight = 1;
  for (int number = 1; number < a.rounds; ++number) {
    const auto step = part.steps_of(number)[node];
    weight *= static_cast<Weight>(step.part);
    leaf |= (step.next & 1) << number;
    node = step.next >> 1;
    leader = step.leader;
  }
  const auto slot = part.first * a.slots + part.standings[leader].number;
  static_cast<LeafPair<Weight>*>(a.leaves)[(slot << (a.rounds - 1)) + leaf / 2] = {
      leaf_of(stronger, valid, weight * static_cast<Weight>(share)),
      leaf_of(weaker, valid, weight * static_cast<Weight>(1 - share))};
}

/// Where there is no round each row is an output's only leaf.
template <class Weight>
__global__ void __launch_bounds__(threads) write_rows(SuccessiveHalvingArguments a, Part part) {
  const int i = static_cast<int>(blockIdx.x) * threads + static_cast<int>(threadIdx.x);
  if (i >= part.rows * part.padded) return;
  const int b = i / part.padded, row = i - b * part.padded;
  static_cast<Leaf<Weight>*>(a.leaves)[part.first * part.padded + i] =
      leaf_of(row, valid_rows(a, part.first + b), Weight(1));
}

using Keys = cub::DoubleBuffer<Key>;

/// Sorts the players of round `number` by score. With null `memory`, gives the bytes that it needs there.
cudaError_t sort_players(const SuccessiveHalvingArguments& a, const Part& p, void* memory, std::size_t& bytes, Keys& keys,
                         int number, cudaStream_t stream) {
  const bool by_leader = a.keep_order && number > 0;
  return cub::DeviceRadixSort::SortKeys(memory, bytes, keys, p.rows * (p.padded >> number), by_leader ? 0 : p.row_bits,
                                        p.row_bits + score_bits + p.batch_bits, stream);
}

/// The same for those that are left in the end, by leader.
cudaError_t sort_leaders(const SuccessiveHalvingArguments& a, const Part& p, void* memory, std::size_t& bytes, Keys& keys,
                         cudaStream_t stream) {
  return cub::DeviceRadixSort::SortKeys(memory, bytes, keys, p.rows * static_cast<int>(a.slots), 0,
                                        p.row_bits + p.batch_bits, stream);
}

/// What any of the sorts needs, at least a byte: null memory would only ask.
std::size_t sorting_bytes_of(const SuccessiveHalvingArguments& a, const Part& p) {
  std::size_t largest = 1, bytes = 0;
  Keys keys;
  for (int number = 0; number < a.rounds; ++number)
    if (sort_players(a, p, nullptr, bytes, keys, number, nullptr) == cudaSuccess) largest = std::max(largest, bytes);
  if (sort_leaders(a, p, nullptr, bytes, keys, nullptr) == cudaSuccess) largest = std::max(largest, bytes);
  return largest;
}

int bits_of(std::int64_t numbers) { return std::bit_width(static_cast<std::uint64_t>(numbers - 1)); }

/// As many batch rows as play at once, the first ones, with the workspace cut up for them; and its bytes.
std::pair<Part, std::int64_t> first_part(const SuccessiveHalvingArguments& a) {
  const std::int64_t padded = a.slots << a.rounds;
  Part p;
  p.padded = static_cast<int>(padded);
  p.rows = static_cast<int>(std::min(a.batch, std::max(std::int64_t{1}, most_players / padded)));
  p.row_bits = bits_of(padded);
  p.batch_bits = bits_of(p.rows);
  p.sorting_bytes = sorting_bytes_of(a, p);
  std::int64_t bytes = 0;
  const auto take = [&](auto*& memory, std::int64_t size) {
    memory = reinterpret_cast<std::remove_reference_t<decltype(memory)>>(static_cast<char*>(a.workspace) + bytes);
    bytes += (size + 255) / 256 * 256;
  };
  const auto players = p.rows * padded;
  for (auto& keys : p.keys) take(keys, players * static_cast<std::int64_t>(sizeof(Key)));
  take(p.standings, players * static_cast<std::int64_t>(sizeof(Standing)));
  if (a.rounds > 0) take(p.pairs, players / 2 * static_cast<std::int64_t>(sizeof(FirstPair)));
  if (a.rounds > 1) take(p.steps, (players - 2 * p.rows * a.slots) * static_cast<std::int64_t>(sizeof(TournamentStep)));
  take(p.sorting, static_cast<std::int64_t>(p.sorting_bytes));
  return {p, bytes};
}

unsigned blocks_for(int count) { return static_cast<unsigned>((count + threads - 1) / threads); }

cudaError_t write_results(const SuccessiveHalvingArguments& a, const Part& p, const Key* ordered, cudaStream_t stream) {
  const bool float64 = a.element == Element::float64;
  const auto outputs = a.float64_scores ? write_outputs<double> : write_outputs<float>;
  outputs<<<blocks_for(p.rows * static_cast<int>(a.slots)), threads, 0, stream>>>(a, p, ordered);
  if (a.rounds > 0) {
    const auto leaves = float64 ? write_leaves<double> : write_leaves<float>;
    leaves<<<blocks_for(p.rows * (p.padded / 2)), threads, 0, stream>>>(a, p);
  } else {
    const auto leaves = float64 ? write_rows<double> : write_rows<float>;
    leaves<<<blocks_for(p.rows * p.padded), threads, 0, stream>>>(a, p);
  }
  return cudaGetLastError();
}

cudaError_t play(const SuccessiveHalvingArguments& a, const Part& p, cudaStream_t stream) {
  const auto read = a.float64_scores ? read_scores<double> : read_scores<float>;
  read<<<blocks_for(p.rows * p.padded), threads, 0, stream>>>(a, p);
  auto bytes = p.sorting_bytes;
  Keys keys(p.keys[0], p.keys[1]);
  for (int number = 0; number < a.rounds; ++number) {
    if (auto error = sort_players(a, p, p.sorting, bytes, keys, number, stream)) return error;
    const auto blocks = blocks_for(p.rows * (p.padded >> (number + 1)));
    settle<<<blocks, threads, 0, stream>>>(a, p, keys.Current(), keys.Alternate(), number, std::log2(a.base));
    keys.selector ^= 1;
  }
  if (a.keep_order && a.rounds > 0)
    if (auto error = sort_leaders(a, p, p.sorting, bytes, keys, stream)) return error;
  return write_results(a, p, keys.Current(), stream);
}

}  // namespace

std::int64_t longest_global_tournament() { return longest_row; }

std::int64_t global_workspace(const SuccessiveHalvingArguments& a) { return a.batch == 0 ? 0 : first_part(a).second; }

cudaError_t global_tournament(const SuccessiveHalvingArguments& a, cudaStream_t stream) {
  auto part = first_part(a).first;
  const int rows = part.rows;
  for (; part.first < a.batch; part.first += rows) {
    part.rows = static_cast<int>(std::min<std::int64_t>(rows, a.batch - part.first));
    if (auto error = play(a, part, stream)) return error;
  }
  return cudaSuccess;
}

}  // namespace transpool

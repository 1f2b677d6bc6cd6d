#include "operators/attention/attention.h"
#include "operators/attention/lsh_kernels.h"
#include "operators/noise.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace transpool {
namespace {

constexpr double lowest = -std::numeric_limits<double>::infinity();

/// Logit of a row for itself: it counts only where the row sees nothing else.
constexpr double self_logit = -1e5;

/// What an instance of the operator is asked for.
struct LshOptions {
  explicit LshOptions(const Options& options)
      : rounds(options.integer("rounds")),
        chunk(options.integer("bucket")),
        most(options.integer("hash_buckets")),
        seed(seed_of(options)) {}

  std::int64_t rounds, chunk, most;
  std::optional<std::int64_t> seed;

  /// How many buckets n rows are hashed to: enough for `chunk` rows each, one where all fit into one chunk, else even, since
  /// a hash is the largest of the projections and their negatives. More than `most` are the pairs of two hashes of about the
  /// square root, so that a row is compared with O(sqrt n) planes instead of O(n): Trax's hash_vecs with a list of numbers
  /// of buckets, from the bound on that Hugging Face's Reformer has for chunks of 64, two chunks' worth.
  LshBuckets buckets(std::int64_t n) const {
    if (n <= chunk) return {};
    const auto wanted = (n + 2 * chunk - 1) / (2 * chunk) * 2;
    if (wanted <= most) return {wanted, 1};
    const auto even = [](double count) { return 2 * static_cast<std::int64_t>(std::ceil(count / 2)); };
    const auto first = even(std::sqrt(static_cast<double>(wanted)));
    return {first, even(static_cast<double>(wanted) / static_cast<double>(first))};
  }
};

/// Normals to random hyperplanes, (h, r, e, planes) float32: first those of the first hash. Rounded to numbers that bfloat16
/// and float16 both hold, so that products with queries of these are exact, and tensor cores give the sums of float32.
at::Tensor random_planes(const at::Tensor& q, const LshOptions& options, const LshBuckets& buckets) {
  const auto drawn = seeded_normal({q.size(1), options.rounds, q.size(3), buckets.planes()}, q, options.seed);
  return drawn.to(at::kBFloat16).to(at::kHalf).to(at::kFloat);
}

/// The bucket of each row in each round, (B, h, r, n) int32, by q (B, h, n, e) on the sides of random hyperplanes; absent
/// where there is one bucket. In float32 whatever the dtype, and one function for all: a row of two projections that differ
/// by rounding alone is in either bucket, as the order of the sums has it.
std::optional<at::Tensor> hash_rows(const at::Tensor& q, const LshOptions& options) {
  const auto buckets = options.buckets(q.size(2));
  if (buckets.all() == 1) return std::nullopt;
  const auto planes = random_planes(q, options, buckets);
  if (const auto found = hash_by_kernel(q, planes, buckets)) return found;
  const auto projected = at::matmul(q.detach().to(at::kFloat).unsqueeze(2), planes);
  const auto hash = [&](std::int64_t start, std::int64_t count) {
    const auto sides = projected.narrow(4, start, count / 2);
    return at::cat({sides, -sides}, 4).argmax(4);
  };
  const auto first = hash(0, buckets.first);
  if (buckets.second == 1) return first.to(at::kInt);
  return (first * buckets.second + hash(buckets.first / 2, buckets.second)).to(at::kInt);
}

/// The same as int64, zeros where there is one bucket.
at::Tensor bucket_of_rows(const at::Tensor& q, const LshOptions& options) {
  const auto hashes = hash_rows(q, options);
  if (hashes) return hashes->to(at::kLong);
  return at::zeros({q.size(0), q.size(1), options.rounds, q.size(2)}, q.options().dtype(at::kLong));
}

/// Zero, but of a graph that reaches k: whoever asks for the gradient of the unread keys gets zeros.
at::Tensor no_keys(const at::Tensor& k) { return k.narrow(2, 0, 0).sum(); }

/// Keys are the queries at length one. Each round hashes the rows, sorts them by bucket, cuts the sorted rows into chunks
/// and lets each row attend to its chunk and the one before. Rounds are joined by their log-sum-exps; a pair that N rounds
/// show counts 1/N in each. On CUDA half types by kernels of its own, else composed of LibTorch's operators.
class LshAttention : public AttentionOperator {
 public:
  explicit LshAttention(const Options& options) : options_(options) {}

  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionMask& mask) const override {
    check_attention_arguments(q, k, v, mask);
    refuse_other_length("lsh", q, k);
    const auto n = q.size(2);
    const LshRounds rounds{options_.rounds, options_.chunk, options_.buckets(n), mask.causal};
    if (lsh_kernels_take(q, v, rounds)) return lsh_by_kernels(q, k, v, hash_rows(q, options_), mask.key_lengths, rounds);
    const auto m = std::min(options_.chunk, n);
    const auto padding = (m - n % m) % m;
    const auto queries = at::constant_pad_nd(q, {0, 0, 0, padding});
    const auto lengths = mask.key_lengths ? *mask.key_lengths : at::full({q.size(0)}, n, q.options().dtype(at::kLong));
    const auto sorted = sort_rows(q, lengths, padding, m);
    const auto [attended, normaliser] = attend(queries, at::constant_pad_nd(v, {0, 0, 0, padding}), sorted, lengths, mask);
    const auto shares = normaliser.softmax(2).unsqueeze(4).to(v.scalar_type());
    const auto out = (attended * shares).sum(2).narrow(2, 0, n) + no_keys(k);
    return mask.key_lengths ? out.masked_fill(valid_positions(lengths, n).logical_not().view({-1, 1, n, 1}), 0) : out;
  }

  std::string backend(const at::Device& device) const override {
    return device.is_cuda() ? "cuda for half types, aten else" : "aten";
  }

 private:
  /// Of each round, all (B, h, r, N): the rows in sorted order, the place of each row in it.
  struct Sorted {
    at::Tensor rows, places;
    std::int64_t chunk;

    /// (B, h, N, e) -> (B, h, r, N / m, m, e).
    at::Tensor chunks_of(const at::Tensor& t) const {
      const auto index = rows.unsqueeze(4).expand({-1, -1, -1, -1, t.size(3)});
      const auto taken = t.unsqueeze(2).expand({-1, -1, rows.size(2), -1, -1}).gather(3, index);
      return taken.unflatten(3, {-1, chunk});
    }
  };

  Sorted sort_rows(const at::Tensor& q, const at::Tensor& lengths, std::int64_t padding, std::int64_t m) const {
    const auto rows = q.size(2) + padding;
    const auto hashes = at::constant_pad_nd(bucket_of_rows(q, options_), {0, padding});
    const auto place = at::arange(rows, lengths.options());
    // Padded rows come last, so that they share no chunk boundary with valid ones.
    const auto padded = (place >= lengths.unsqueeze(1)).view({-1, 1, 1, rows});
    const auto last = options_.buckets(q.size(2)).all();
    const auto order = (hashes.masked_fill(padded, last) * rows + place).argsort(3, /*descending=*/false);
    return {order, order.argsort(3, /*descending=*/false), m};
  }

  /// Each chunk preceded by the one before it, (.., c, m, ..) -> (.., c, 2 m, ..); `fill` stands before the first.
  static at::Tensor with_previous(const at::Tensor& t, double fill) {
    const auto before = at::cat({at::full_like(t.narrow(3, 0, 1), fill), t.narrow(3, 0, t.size(3) - 1)}, 3);
    return at::cat({before, t}, 4);
  }

  /// log N of each pair: how many rounds show it, -inf where it is no pair at all.
  at::Tensor log_rounds(const Sorted& sorted, const at::Tensor& keys, at::ScalarType dtype) const {
    const auto chunks = at::floor_divide(sorted.places, sorted.chunk);  // (B, h, r, N)
    auto shown = at::zeros({}, keys.options());
    for (std::int64_t r = 0; r < options_.rounds; ++r) {
      const auto chunk = sorted.chunks_of(chunks.select(2, r).unsqueeze(3)).squeeze(5);
      const auto back = chunk.unsqueeze(5) - with_previous(chunk, -2).unsqueeze(4);
      shown = shown + (back == 0).logical_or(back == 1);
    }
    return shown.to(dtype).log();
  }

  /// The output (B, h, r, N, e) and log-sum-exp (B, h, r, N) of each round, in source order.
  std::pair<at::Tensor, at::Tensor> attend(const at::Tensor& q, const at::Tensor& v, const Sorted& sorted,
                                           const at::Tensor& lengths, const AttentionMask& mask) const {
    const auto exact = accumulation_dtype(q.scalar_type());
    const auto scale = 1 / std::sqrt(static_cast<double>(q.size(3)));
    const auto norm = q.to(exact).norm(2, 3, true).clamp_min(1e-12);
    const auto unit = (q.to(exact) / norm * scale).to(q.scalar_type());
    const auto row = sorted.rows.unflatten(3, {-1, sorted.chunk});
    const auto key = with_previous(row, -1).unsqueeze(4);
    const auto query = row.unsqueeze(5);
    auto barred = (key < 0).logical_or(key >= lengths.view({-1, 1, 1, 1, 1, 1}));
    if (mask.causal) barred = barred.logical_or(key > query);
    // A padded row may see no key at all; it keeps its logits, and its output is zeroed in the end.
    barred = barred.logical_and(query < lengths.view({-1, 1, 1, 1, 1, 1}));
    auto logits = at::matmul(sorted.chunks_of(q), with_previous(sorted.chunks_of(unit), 0).transpose(4, 5)).to(exact);
    if (options_.rounds > 1) logits = logits - log_rounds(sorted, key, exact).clamp_min(0);
    logits = logits.masked_fill(key == query, self_logit).masked_fill(barred, lowest);
    const auto weights = logits.softmax(5).to(v.scalar_type());
    const auto out = at::matmul(weights, with_previous(sorted.chunks_of(v), 0)).flatten(3, 4);
    const auto normaliser = logits.logsumexp(5).flatten(3, 4);
    const auto back = sorted.places.unsqueeze(4).expand({-1, -1, -1, -1, v.size(3)});
    return {out.gather(3, back), normaliser.gather(3, sorted.places)};
  }

  LshOptions options_;
};

/// The definition: softmax over the set of rows that any round shows, as a matrix of all pairs of a head.
class LshBySets : public AttentionOperator {
 public:
  explicit LshBySets(const Options& options) : options_(options) {}

  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionMask& mask) const override {
    const auto n = q.size(2);
    const auto hashes = bucket_of_rows(q, options_);
    std::vector<at::Tensor> batch;
    for (std::int64_t b = 0; b < q.size(0); ++b) {
      const auto valid = mask.key_lengths ? (*mask.key_lengths)[b].item<std::int64_t>() : n;
      std::vector<at::Tensor> heads;
      for (std::int64_t h = 0; h < q.size(1); ++h) {
        const auto sees = neighbours(hashes[b][h].narrow(1, 0, valid), std::min(options_.chunk, n));
        const auto out = attend(q[b][h].narrow(0, 0, valid), v[b][h].narrow(0, 0, valid), sees, mask.causal);
        heads.push_back(at::constant_pad_nd(out, {0, 0, 0, n - valid}));
      }
      batch.push_back(at::stack(heads));
    }
    return at::stack(batch) + no_keys(k);
  }

 private:
  /// (L, L) bool of hashes (r, L): some round shows j to i. A row's rank in a round is how many rows come before it.
  static at::Tensor neighbours(const at::Tensor& hashes, std::int64_t chunk) {
    const auto valid = hashes.size(1);
    const auto place = at::arange(valid, hashes.options());
    auto sees = at::zeros({valid, valid}, hashes.options().dtype(at::kBool));
    for (std::int64_t r = 0; r < hashes.size(0); ++r) {
      const auto key = hashes[r] * valid + place;
      const auto rank = (key.unsqueeze(0) < key.unsqueeze(1)).sum(1);
      const auto chunks = at::floor_divide(rank, chunk);
      const auto back = chunks.unsqueeze(1) - chunks.unsqueeze(0);
      sees = sees.logical_or(back == 0).logical_or(back == 1);
    }
    return sees;
  }

  static at::Tensor attend(const at::Tensor& q, const at::Tensor& v, at::Tensor sees, bool causal) {
    const auto self = at::eye(q.size(0), sees.options());
    if (causal) sees = sees.tril();
    sees = sees.logical_and(self.logical_not());
    // A row sees itself where it sees nothing else.
    sees = sees.logical_or(self.logical_and(sees.any(1, true).logical_not()));
    const auto keys = q / q.square().sum(1, true).sqrt();
    const auto logits = at::matmul(q, keys.t()) / std::sqrt(static_cast<double>(q.size(1)));
    return at::matmul(logits.masked_fill(sees.logical_not(), lowest).softmax(1), v);
  }

  LshOptions options_;
};

Cost lsh_cost(const AttentionShape& shape, const Options& options) {
  const LshOptions asked(options);
  const auto n = shape.queries;
  const auto m = std::min(asked.chunk, n);
  const auto rounds = static_cast<double>(asked.rounds);
  const auto heads = static_cast<double>(shape.batch * shape.heads);
  const auto e = static_cast<double>(shape.head_width);
  const auto rows = static_cast<double>((n + m - 1) / m * m);
  const auto seen = static_cast<double>(2 * m);
  const double pairs = heads * rounds * rows * seen * (shape.causal ? 0.5 : 1.0);
  auto cost = attention_cost(shape, pairs);
  if (shape.causal) {
    cost.forward_differences = {{"causal_by_mask", cost.flops}};
    cost.backward_differences = {{"causal_by_mask", cost.backward_flops}};
  }
  // Hashing; no gradient.
  cost.flops += heads * rounds * static_cast<double>(n) * e * 2 * static_cast<double>(asked.buckets(n).planes());
  const auto element = static_cast<double>(c10::elementSize(shape.dtype));
  if (lsh_kernels_take(shape, {asked.rounds, asked.chunk, asked.buckets(n)})) {
    // The output, its log-sum-exp, the sorted rows of each round and eight chunk numbers.
    cost.activation_bytes = heads * static_cast<double>(n) * (e * element + 4 + 4 * rounds + 16);
    return cost;
  }
  const auto exact = static_cast<double>(c10::elementSize(accumulation_dtype(shape.dtype)));
  const auto sorted = heads * rounds * rows;
  // By round: sorted queries, doubled keys and values, two outputs; logits and weights of all pairs with two masks; the
  // sorted rows and their places, the log-sum-exps and their softmax.
  cost.activation_bytes = sorted * (7 * e * element + seen * (2 * exact + 2) + 16 + 2 * exact);
  // The padded queries, unit keys and values, which gathers keep, and the norms with and without their bound; the output.
  cost.activation_bytes += heads * rows * (3 * e * element + 2 * exact) + cost.bytes_written;
  // Rounded weights and shares; the queries in the wider dtype, for the norms and for the quotients.
  if (element != exact) cost.activation_bytes += sorted * (seen + 1) * element + heads * rows * 2 * e * exact;
  if (shape.masked) cost.activation_bytes += static_cast<double>(shape.batch * n);
  return cost;
}

const RegisterAttention registration({
    {.name = "lsh",
     .description = "each row attends to rows of nearby hash: shared queries and keys (k is not read), several rounds",
     .source = "arXiv 2001.04451, equation 5 and appendix A, without the mask of other buckets in a chunk",
     .options = {{.name = "rounds",
                  .type = OptionType::integer,
                  .fallback = 4,
                  .meaning = "hash rounds",
                  .minimum = 1,
                  .maximum = 64},
                 {.name = "bucket",
                  .type = OptionType::integer,
                  .fallback = 64,
                  .meaning = "rows of one chunk of sorted rows; a row sees its own chunk and the one before",
                  .minimum = 1},
                 {.name = "hash_buckets",
                  .type = OptionType::integer,
                  .fallback = 128,
                  .meaning = "most buckets of one hash; where the rows need more, a bucket is a pair of two hashes",
                  .minimum = 2},
                 seed_option("random projections", nullptr)},
     .capabilities = {.stochastic = true, .causal = true}},
    [](const Options& options) { return std::make_shared<LshAttention>(options); },
    [](const Options& options) { return std::make_shared<LshBySets>(options); },
    lsh_cost,
});

}  // namespace
}  // namespace transpool

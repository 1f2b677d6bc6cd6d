#include "operators/pooling/pool_by_rows.h"
#include "operators/pooling/selection.h"

#include <algorithm>
#include <limits>

namespace transpool {
namespace {

constexpr double lowest = -std::numeric_limits<double>::infinity();

/// Elements of the similarity matrix that are held at a time, over the whole batch.
constexpr std::int64_t block_elements = std::int64_t{1} << 24;

/// How many pairs one step merges of `rows` rows on their way to `goal`. Each row of set A merges at most once.
std::int64_t merges(std::int64_t rows, std::int64_t goal) { return std::min(rows / 2, rows - goal); }

/// Sums (B, groups, d) of the rows of each group; rows of a group past `groups` are left out, whatever they hold.
at::Tensor group_sums(const at::Tensor& rows, const at::Tensor& group, std::int64_t groups) {
  return at::zeros({rows.size(0), groups + 1, rows.size(2)}, rows.options())
      .scatter_add(1, group.unsqueeze(2).expand_as(rows), rows)
      .narrow(1, 0, groups);
}

/// For each row of a (B, m, d) the most similar row of b (B, l, d), and how similar: (B, m) each. Unit vectors. Rows of b
/// at or past `present` (B, 1) are not there: -inf where none is, and where the similarity is NaN.
std::pair<at::Tensor, at::Tensor> most_similar(const at::Tensor& a, const at::Tensor& b, const at::Tensor& present) {
  const auto m = a.size(1), l = b.size(1);
  const auto absent = (at::arange(l, present.options()).unsqueeze(0) >= present).unsqueeze(1);
  const auto targets = b.transpose(1, 2);
  const auto block = std::clamp<std::int64_t>(block_elements / (a.size(0) * l), 1, m);
  std::vector<at::Tensor> similarities, partners;
  for (std::int64_t begin = 0; begin < m; begin += block) {
    auto similarity = at::bmm(a.narrow(1, begin, std::min(block, m - begin)), targets);
    similarity.masked_fill_(absent, lowest).masked_fill_(similarity.isnan(), lowest);
    partners.push_back(similarity.argmax(2));
    similarities.push_back(similarity.gather(2, partners.back().unsqueeze(2)).squeeze(2));
  }
  return {at::cat(similarities, 1), at::cat(partners, 1)};
}

/// One step of bipartite soft matching on w places: the even ones are set A, the odd ones set B. Returns the new place
/// (B, w) of each old one, in the order of the groups' first source rows.
class MatchingStep {
 public:
  /// means (B, w, d); first (B, w): source row that each group starts with; left, merged (B, 1): rows that are there, and
  /// how many of them go.
  MatchingStep(const at::Tensor& means, const at::Tensor& first, const at::Tensor& left, const at::Tensor& merged)
      : width_(means.size(1)), first_(first), left_(left), merged_(merged) {
    const auto unit = means / means.norm(2, 2, /*keepdim=*/true).clamp_min(1e-300);
    const auto even = unit.slice(1, 0, width_, 2), odd = unit.slice(1, 1, width_, 2);
    std::tie(similarity_, partner_) = most_similar(even, odd, at::floor_divide(left, 2));
  }

  at::Tensor new_places() const {
    const auto places = at::arange(width_, first_.options()).expand_as(first_);
    auto target = places.clone();
    const auto even = target.slice(1, 0, width_, 2);
    even.copy_(at::where(leaves(), 2 * partner_ + 1, even));
    const auto starts = first_.scatter_reduce(1, target, first_, "amin");
    const auto gone = (target != places) | (places >= left_);
    const auto order = starts.masked_fill(gone, std::numeric_limits<std::int64_t>::max()).argsort(/*stable=*/true, 1);
    return at::empty_like(places, at::MemoryFormat::Contiguous).scatter_(1, order, places).gather(1, target);
  }

 private:
  /// (B, |A|): whether the row of A is among the most similar to their partners. Rows that are not there stand last.
  at::Tensor leaves() const {
    const auto places = at::arange(similarity_.size(1), first_.options()).expand_as(similarity_);
    const auto ranked =
        similarity_.masked_fill(2 * places >= left_, lowest).argsort(/*stable=*/true, 1, /*descending=*/true);
    return at::empty_like(ranked).scatter_(1, ranked, places) < merged_;
  }

  std::int64_t width_;
  at::Tensor first_, left_, merged_, similarity_, partner_;
};

/// First source row (B, groups) of each group; n where a group is empty.
at::Tensor first_rows(const at::Tensor& source, const at::Tensor& group, std::int64_t groups) {
  return at::full({source.size(0), groups + 1}, source.size(1), source.options())
      .scatter_reduce(1, group, source, "amin")
      .narrow(1, 0, groups);
}

/// Group (B, n) of each source row among k, by their first rows; k for rows past the length.
at::Tensor merge_groups(const at::Tensor& rows, std::int64_t k, const std::optional<at::Tensor>& lengths) {
  const auto batch = rows.size(0), n = rows.size(1);
  const auto source = at::arange(n, rows.options().dtype(at::kLong)).expand({batch, n});
  const auto ones = at::ones({batch, n, 1}, rows.options());
  auto left = lengths ? lengths->unsqueeze(1) : at::full({batch, 1}, n, source.options());
  const auto goal = left.clamp_max(k);
  const auto absent = source >= left;
  auto group = source.masked_fill(absent, n);
  for (auto width = n; width > k;) {
    const auto means = group_sums(rows, group, width) / group_sums(ones, group, width).clamp_min(1);
    const auto merged = at::minimum(at::floor_divide(left, 2), left - goal);
    const auto places = MatchingStep(means, first_rows(source, group, width), left, merged).new_places();
    group = places.gather(1, group.clamp_max(width - 1));
    width -= merges(width, k);
    group.masked_fill_(absent, width);
    left = left - merged;
  }
  return group;
}

/// Size-weighted averages of averages are plain means over all source rows that went into them: the matching names the
/// groups, one segmented sum mixes them. The matching runs in float64, since it is discrete.
class TokenMerging : public PoolingOperator {
 public:
  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    check_pooling_arguments(x, scores, k, lengths);
    const auto rows = x.to(at::kDouble);
    const auto group = merge_groups(rows.detach(), k, lengths);
    const auto batch = x.size(0), n = x.size(1);
    const auto source = at::arange(n, group.options()).expand({batch, n});
    // One segmented sum each for the rows, and for their scores and number side by side.
    const auto facts = at::stack({bounded_scores(scores.detach()).to(at::kDouble), at::ones_like(scores, at::kDouble)}, 2);
    const auto sums = group_sums(facts, group, k);
    const auto sizes = sums.select(2, 1).clamp_min(1);
    const auto first = first_rows(source, group, k);
    return {(group_sums(rows, group, k) / sizes.unsqueeze(2)).to(x.scalar_type()),
            (sums.select(2, 0) / sizes).to(scores.scalar_type()), first.masked_fill(first == n, -1)};
  }

  bool passes_score_gradient() const override { return false; }
};

/// The paper's form, one batch row at a time: every step averages whole rows, weighted by their sizes, by a matrix of the
/// shares that each old row has in each new one.
class TokenMergingReference : public PoolingOperator {
 public:
  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    return pool_by_rows(x, scores, k, lengths, pool_row);
  }

  bool passes_score_gradient() const override { return false; }

 private:
  struct State {
    at::Tensor rows;  // (m, d + 1): the last column carries the score
    std::vector<std::int64_t> first;
    std::vector<double> size;
  };

  struct Match {
    double similarity;
    std::size_t a, b;
  };

  static Pooled pool_row(const at::Tensor& x, const at::Tensor& scores, std::int64_t outputs, std::int64_t) {
    const auto width = x.size(1);
    const auto scored = bounded_scores(scores.detach()).to(at::kDouble).unsqueeze(1);
    State state{at::cat({x.to(at::kDouble), scored}, 1), {}, {}};
    for (std::int64_t i = 0; i < x.size(0); ++i) state.first.push_back(i);
    state.size.resize(state.first.size(), 1);
    while (static_cast<std::int64_t>(state.first.size()) > outputs) state = step(state, outputs);
    return {state.rows.narrow(1, 0, width).to(x.scalar_type()),
            state.rows.select(1, width).detach().to(scores.scalar_type()),
            at::tensor(state.first, scores.options().dtype(at::kLong))};
  }

  static std::vector<Match> matches(const at::Tensor& rows) {
    const auto length = rows.square().sum(1).sqrt().clamp_min(1e-150);
    const auto cosine = at::mm(rows, rows.t()).div(at::outer(length, length)).cpu();
    const auto value = cosine.accessor<double, 2>();
    std::vector<Match> best;
    for (std::int64_t a = 0; a < rows.size(0); a += 2) {
      Match match{lowest, static_cast<std::size_t>(a), 1};
      for (std::int64_t b = 1; b < rows.size(0); b += 2)
        if (value[a][b] > match.similarity) match = {value[a][b], match.a, static_cast<std::size_t>(b)};
      best.push_back(match);
    }
    std::stable_sort(best.begin(), best.end(), [](const Match& x, const Match& y) { return x.similarity > y.similarity; });
    return best;
  }

  static State step(const State& in, std::int64_t k) {
    const auto m = static_cast<std::int64_t>(in.first.size());
    auto pairs = matches(in.rows.detach().narrow(1, 0, in.rows.size(1) - 1));
    pairs.resize(static_cast<std::size_t>(merges(m, k)));
    std::map<std::size_t, std::vector<std::size_t>> members;  // by the place that they merge into
    for (std::size_t i = 0; i < in.first.size(); ++i) members[i] = {i};
    for (const auto& pair : pairs) {
      members[pair.b].push_back(pair.a);
      members.erase(pair.a);
    }
    std::map<std::int64_t, std::vector<std::size_t>> ordered;  // by first source row
    for (const auto& [place, rows] : members) {
      auto first = in.first[place];
      for (const auto row : rows) first = std::min(first, in.first[row]);
      ordered[first] = rows;
    }
    State out;
    auto shares = at::zeros({static_cast<std::int64_t>(ordered.size()), m}, at::kDouble);
    auto share = shares.accessor<double, 2>();
    for (const auto& [first, rows] : ordered) {
      double size = 0;
      for (const auto row : rows) size += in.size[row];
      for (const auto row : rows)
        share[static_cast<std::int64_t>(out.first.size())][static_cast<std::int64_t>(row)] = in.size[row] / size;
      out.first.push_back(first);
      out.size.push_back(size);
    }
    out.rows = at::matmul(shares.to(in.rows.device()), in.rows);
    return out;
  }
};

Cost token_merging_cost(const PoolingShape& shape, const Options&) {
  const auto batch = static_cast<double>(shape.batch);
  const auto width = static_cast<double>(shape.width);
  const auto element = static_cast<double>(c10::elementSize(shape.dtype));
  const auto inputs = batch * static_cast<double>(shape.length);
  const auto outputs = batch * static_cast<double>(shape.pooled_length);
  Cost cost;
  for (auto rows = shape.length; rows > shape.pooled_length; rows -= merges(rows, shape.pooled_length))
    cost.flops += 2 * batch * static_cast<double>((rows + 1) / 2) * static_cast<double>(rows / 2) * width;
  cost.bytes_read = inputs * (width * element + sizeof(float));
  cost.bytes_written = outputs * (width * element + sizeof(float) + sizeof(std::int64_t));
  // Groups of the rows, sizes of the groups.
  cost.activation_bytes = inputs * sizeof(std::int64_t) + outputs * sizeof(double) + cost.bytes_written;
  return cost;
}

const RegisterPooling registration({
    {.name = "token_merging",
     .description = "bipartite soft matching: the most similar rows merge into their means until k are left",
     .source = "ToMe, arXiv 2210.09461, bipartite soft matching, on x itself; control"},
    [](const Options&) { return std::make_shared<TokenMerging>(); },
    [](const Options&) { return std::make_shared<TokenMergingReference>(); },
    token_merging_cost,
});

}  // namespace
}  // namespace transpool

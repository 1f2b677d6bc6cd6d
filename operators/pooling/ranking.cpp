#include "operators/pooling/ranking.h"

#include "operators/pooling/mixture.h"
#include "operators/pooling/selection.h"

namespace transpool {

Ranking rank_scores(const at::Tensor& clean, const std::optional<at::Tensor>& lengths) {
  const auto n = clean.size(1);
  Ranking ranking;
  ranking.order =
      std::get<1>(rankable_scores(clean, lengths).sort(/*stable=*/true, /*dim=*/1, /*descending=*/true)).contiguous();
  const auto every = at::arange(n, ranking.order.options()).expand_as(ranking.order);
  ranking.ranks = at::empty_like(ranking.order).scatter_(1, ranking.order, every);
  ranking.scores = clean.gather(1, ranking.order);

  const auto sorted = ranking.scores.detach();
  const auto as_before = at::constant_pad_nd(sorted.narrow(1, 1, n - 1) == sorted.narrow(1, 0, n - 1), {1, 0}, false);
  const auto first_rank = std::get<0>(every.masked_fill(as_before, 0).cummax(1));
  ranking.leaders = ranking.order.gather(1, first_rank);
  return ranking;
}

double ranking_bytes(const PoolingShape& shape) {
  return static_cast<double>(shape.batch * shape.length) *
         static_cast<double>(sizeof(std::int64_t) + static_cast<std::size_t>(score_bytes(shape.dtype)));
}

at::Tensor order_by_counting(const at::Tensor& scores) {
  const auto s = scores.detach();
  const auto position = at::arange(s.size(0), s.options().dtype(at::kLong));
  const auto earlier = position.unsqueeze(0) < position.unsqueeze(1);
  const auto ahead = (s.unsqueeze(0) > s.unsqueeze(1)) | ((s.unsqueeze(0) == s.unsqueeze(1)) & earlier);
  return at::empty_like(position).scatter_(0, ahead.sum(1), position);
}

}  // namespace transpool

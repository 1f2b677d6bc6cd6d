#include "operators/attention/flash.h"
#include "operators/attention/scaled_dot_product.h"
#include "operators/attention/window_flash.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace transpool {
namespace {

/// Each row attends to the w rows on each side; the first g rows attend to all and all attend to them. Flash attention has
/// windows of its own; where it does not take the tensors, the sequence is cut into chunks of w rows: a chunk's queries see
/// the global rows, the chunk before, their own and the one after, under a band mask, so the work is O(n (3 w + g)).
class SlidingWindowAttention : public AttentionOperator {
 public:
  explicit SlidingWindowAttention(const Options& options)
      : window_(options.integer("window")), global_(options.integer("global_tokens")) {}

  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionMask& mask) const override {
    check_attention_arguments(q, k, v, mask);
    refuse_other_length("sliding_window", q, k);
    const auto n = q.size(2);
    if (window_ >= n - 1 || global_ >= n) return scaled_dot_product(q, k, v, mask);
    if (flash_takes(q, k, v)) {
      const auto first = global_ > 0 ? std::optional(global_rows(q, k, v, mask)) : std::nullopt;
      return window_by_flash(q, k, v, mask.key_lengths, first, {window_, global_, mask.causal});
    }
    const auto local = chunks(q, k, v, mask);
    if (global_ == 0) return local;
    return at::cat({global_rows(q, k, v, mask), local.narrow(2, global_, n - global_)}, 2);
  }

  std::string backend(const at::Device& device) const override {
    return device.is_cuda() ? "flash for half types, sdpa else" : "sdpa";
  }

 private:
  at::Tensor global_rows(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionMask& mask) const {
    const auto queries = q.narrow(2, 0, global_);
    if (!mask.causal) return scaled_dot_product(queries, k, v, mask);
    auto first = mask;
    if (first.key_lengths) first.key_lengths = first.key_lengths->clamp_max(global_);
    return scaled_dot_product(queries, k.narrow(2, 0, global_), v.narrow(2, 0, global_), first);
  }

  at::Tensor chunks(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionMask& mask) const {
    const auto batch = q.size(0);
    const auto heads = q.size(1);
    const auto n = q.size(2);
    const auto count = (n + window_ - 1) / window_;
    const auto seen = (mask.causal ? 2 : 3) * window_;
    const auto after = count * window_ - n + (mask.causal ? 0 : window_);
    // (B, h, n, e) -> (B count, h, rows, e): a window slides over the padded rows, the global ones stand before it.
    const auto keys_of = [&](const at::Tensor& t) {
      const auto slid = at::constant_pad_nd(t, {0, 0, window_, after}).unfold(2, seen, window_);  // (B, h, count, e, seen)
      auto rows = slid.permute({0, 2, 1, 4, 3});
      if (global_ > 0) {
        const auto first = t.narrow(2, 0, global_).unsqueeze(1);
        rows = at::cat({first.expand({batch, count, heads, global_, t.size(3)}), rows}, 3);
      }
      return rows.reshape({batch * count, heads, global_ + seen, t.size(3)});
    };
    const auto queries = at::constant_pad_nd(q, {0, 0, 0, count * window_ - n}).unflatten(2, {count, window_});
    auto allowed = band(q, mask, count, seen).expand({batch, count, window_, global_ + seen});
    // A row without any key would be 0/0 in some kernels: it attends to all and is zeroed afterwards.
    const auto empty = allowed.any(3, true).logical_not();
    allowed = allowed.logical_or(empty).reshape({batch * count, 1, window_, global_ + seen});
    const auto out =
        at::scaled_dot_product_attention(queries.transpose(1, 2).flatten(0, 1), keys_of(k), keys_of(v), allowed);
    return out.masked_fill(empty.reshape({batch * count, 1, window_, 1}), 0)
        .unflatten(0, {batch, count})
        .transpose(1, 2)
        .flatten(2, 3)
        .narrow(2, 0, n);
  }

  /// (B or 1, count, w, g + seen) bool: which of its keys a query may see.
  at::Tensor band(const at::Tensor& q, const AttentionMask& mask, std::int64_t count, std::int64_t seen) const {
    const auto options = q.options().dtype(at::kLong);
    const auto start = at::arange(count, options).view({1, count, 1, 1}) * window_;
    const auto row = start + at::arange(window_, options).view({1, 1, window_, 1});
    const auto slid = start - window_ + at::arange(seen, options).view({1, 1, 1, seen});
    // Global rows are seen as such, not once more in the window.
    auto near = ((row - slid).abs() <= window_).logical_and(slid >= global_);
    auto first = at::ones({1, count, window_, global_}, q.options().dtype(at::kBool));
    const auto leading = at::arange(global_, options).view({1, 1, 1, global_});
    if (mask.causal) {
      near = near.logical_and(slid <= row);
      first = leading <= row;
    }
    const auto lengths = mask.key_lengths ? mask.key_lengths->view({-1, 1, 1, 1}) : at::full({1}, q.size(2), options);
    near = near.logical_and(slid < lengths);
    first = first.logical_and(leading < lengths);
    return at::cat({first, near.expand({first.size(0), count, window_, seen})}, 3);
  }

  std::int64_t window_, global_;
};

/// The definition: full attention in which a key that is neither near nor global, for a query that is not global, counts
/// nothing.
class BandMatrix : public AttentionOperator {
 public:
  explicit BandMatrix(const Options& options)
      : window_(options.integer("window")), global_(options.integer("global_tokens")) {}

  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionMask& mask) const override {
    const auto n = q.size(2);
    const auto row = at::arange(n, q.options().dtype(at::kLong)).unsqueeze(1), key = row.t();
    auto allowed = ((row - key).abs() <= window_).logical_or(row < global_).logical_or(key < global_);
    if (mask.causal) allowed = allowed.logical_and(key <= row);
    std::vector<at::Tensor> batch;
    for (std::int64_t b = 0; b < q.size(0); ++b) {
      const auto valid = mask.key_lengths ? (*mask.key_lengths)[b].item<std::int64_t>() : n;
      const auto barred = allowed.narrow(1, 0, valid).logical_not();
      std::vector<at::Tensor> heads;
      for (std::int64_t h = 0; h < q.size(1); ++h) {
        const auto logits = at::matmul(q[b][h], k[b][h].narrow(0, 0, valid).t()) * std::pow(q.size(3), -0.5);
        const auto shares = logits.masked_fill(barred, -std::numeric_limits<double>::infinity()).softmax(1);
        // A row of barred keys alone has no shares.
        const auto weights = shares.masked_fill(barred.all(1, true), 0);
        heads.push_back(at::matmul(weights, v[b][h].narrow(0, 0, valid)));
      }
      batch.push_back(at::stack(heads));
    }
    return at::stack(batch);
  }

 private:
  std::int64_t window_, global_;
};

/// Pairs that the definition allows, of one head; lengths aside.
double allowed_pairs(std::int64_t n, std::int64_t window, std::int64_t global, bool causal) {
  const auto w = static_cast<double>(std::min(window, n - 1));
  const auto g = static_cast<double>(std::min(global, n));
  const auto rows = static_cast<double>(n);
  const auto far = rows - 1 - w;  // the distances that no window reaches
  const auto below = rows * (w + 1) - w * (w + 1) / 2;
  // Global rows add the pairs with keys further than w away.
  const auto reached = std::min(g, far);
  const auto added = reached * far - reached * (reached - 1) / 2;
  return causal ? below + added : 2 * (below + added) - rows;
}

/// Kept by the chunks, of `rows` padded rows that see `seen` each: queries, keys and values laid out by chunk, the output
/// (`outputs` times: before empty rows are zeroed, and after where that is the result) and its log-sum-exps, the mask in the
/// dtype of q, which rows are empty.
double window_bytes(const AttentionShape& shape, std::int64_t rows, std::int64_t window, double seen, double outputs) {
  const auto padded = static_cast<double>(rows);
  const auto heads = static_cast<double>(shape.batch * shape.heads);
  const auto element = static_cast<double>(c10::elementSize(shape.dtype));
  const double local = heads * padded * static_cast<double>(shape.head_width) * element;
  return local * (1 + outputs + 2 * seen / static_cast<double>(window)) + heads * padded * sizeof(float) +
         static_cast<double>(shape.batch) * padded * (seen * element + 1);
}

/// Kept by the attention of the global rows: their output and log-sum-exps and, with lengths, their mask.
double global_bytes(const AttentionShape& shape, std::int64_t global) {
  AttentionShape part = shape;
  part.queries = global;
  if (shape.causal) part.keys = global;
  return attention_cost(part, 0).activation_bytes + mask_bytes(part);
}

Cost sliding_window_cost(const AttentionShape& shape, const Options& options) {
  const auto window = options.integer("window");
  const auto global = options.integer("global_tokens");
  const auto n = shape.queries;
  const auto heads = static_cast<double>(shape.batch * shape.heads);
  const auto e = static_cast<double>(shape.head_width);
  const auto pairs = allowed_pairs(n, window, global, shape.causal);
  auto cost = attention_cost(shape, heads * pairs);
  const auto rows = static_cast<double>(n);
  const auto g = static_cast<double>(global), w = static_cast<double>(window);
  double executed = shape.causal && !shape.masked ? pairs : rows * rows;
  if (window < n - 1 && global < n) {
    const auto among_global = shape.masked ? g * g : g * (g + 1) / 2;
    executed = shape.causal ? among_global : g * rows;
    if (flash_takes(shape)) {
      executed += allowed_pairs(n, window, 0, shape.causal) + rows * g + (shape.masked ? w * (w + 1) / 2 : 0);
    } else {
      const auto padded = static_cast<double>((n + window - 1) / window * window);
      const auto seen = (shape.causal ? 2 : 3) * w + g;
      executed += padded * seen;
      cost.activation_bytes = window_bytes(shape, static_cast<std::int64_t>(padded), window, seen, global > 0 ? 1 : 2);
      if (global > 0) cost.activation_bytes += cost.bytes_written + global_bytes(shape, global);
    }
  } else if (shape.masked) {
    cost.activation_bytes += mask_bytes(shape) + cost.bytes_written;
  }
  const double extra = 4 * heads * (executed - pairs) * e;
  const char* cause = flash_takes(shape) ? "global_and_padded_rows_counted_whole" : "band_by_mask";
  cost.forward_differences = {{cause, extra}};
  cost.backward_differences = {{cause, 2 * extra}};
  return cost;
}

const RegisterAttention registration({
    {.name = "sliding_window",
     .description = "attention to a window on each side, and to and from global rows at the front",
     .source = "arXiv 2004.05150, section 3.1; w is half of the paper's",
     .options = {{.name = "window",
                  .type = OptionType::integer,
                  .fallback = 256,
                  .meaning = "rows on each side that a row attends to, w",
                  .minimum = 1},
                 {.name = "global_tokens",
                  .type = OptionType::integer,
                  .fallback = 0,
                  .meaning = "first rows that attend to all rows and are attended to by all",
                  .minimum = 0}},
     .capabilities = {.causal = true}},
    [](const Options& options) { return std::make_shared<SlidingWindowAttention>(options); },
    [](const Options& options) { return std::make_shared<BandMatrix>(options); },
    sliding_window_cost,
});

}  // namespace
}  // namespace transpool

#include "operators/attention/window_flash.h"

#include "operators/attention/flash.h"

#include <torch/csrc/autograd/custom_function.h>

#include <limits>

namespace transpool {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

/// The calls whose keys together are those of a row: of its window, of the global rows, and, of rows that come after the
/// valid ones, of the valid rows that their windows reach.
struct WindowCalls {
  SequenceForm form;
  std::optional<at::Tensor> lengths;
  WindowOptions options;

  SegmentCall near(const at::Tensor& like) const {
    return {segment_bounds(Segments::window, form, lengths, form.rows, options.global, like),
            form.rows,
            form.rows,
            false,
            options.window,
            options.causal ? 0 : options.window};
  }
  SegmentCall leading(const at::Tensor& like) const {
    return {segment_bounds(Segments::global, form, lengths, form.rows, options.global, like), form.rows, options.global};
  }
  /// The first rows of the sequences, packed: the gradient of keys that no query sees would be written for all rows.
  at::Tensor first_rows(const at::Tensor& t) const {
    const SequenceForm first{form.batch, form.heads, options.global, form.by_head};
    return first.packed(form.heads_of(t).narrow(2, 0, options.global));
  }
  void add_to_first_rows(const at::Tensor& to, const at::Tensor& t) const {
    const SequenceForm first{form.batch, form.heads, options.global, form.by_head};
    form.heads_of(to).narrow(2, 0, options.global).add_(first.heads_of(t));
  }
};

/// The first `window` rows after the valid ones against the last `window` valid ones, copied out: the i-th sees the i-th key
/// and those after it. Flash lines windows up at the ends of segments, so that these pairs are no window in place.
struct PaddedRows {
  SequenceForm form, own;
  at::Tensor real, rows,
      keys;  ///< (B, 1, w): whether there is such a row; its place and its keys', clamped into the sequence
  SegmentCall call;

  PaddedRows(const WindowCalls& calls, const at::Tensor& like) : form(calls.form) {
    const auto window = calls.options.window;
    own = {form.batch, form.heads, window, true};
    const auto step = at::arange(window, calls.lengths->options());
    const auto place = calls.lengths->view({-1, 1, 1}) + step;
    real = (place < form.rows).logical_and(place >= calls.options.global);
    rows = place.clamp_max(form.rows - 1);
    keys = (place - window).clamp_min(0);
    call = {segment_bounds(Segments::suffix, own, calls.lengths, window, calls.options.global, like), window, window, false,
            0};
  }

  at::Tensor index(const at::Tensor& places, const at::Tensor& t) const {
    return places.unsqueeze(3).expand({form.batch, form.heads, own.rows, t.size(-1)});
  }
  at::Tensor take(const at::Tensor& t, const at::Tensor& places) const {
    return own.packed(form.heads_of(t).gather(2, index(places, t)));
  }
  void add(const at::Tensor& to, const at::Tensor& t, const at::Tensor& places) const {
    form.heads_of(to).scatter_add_(2, index(places, to), own.heads_of(t));
  }
  at::Tensor real_normaliser(const at::Tensor& t) const { return t.masked_fill(real.logical_not(), infinity); }
  at::Tensor head_rows() const { return rows.expand({form.batch, form.heads, own.rows}); }
};

/// Attends the padded rows, whose output was zero, in place.
void attend_padded(const WindowCalls& calls, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                   SegmentResult& result) {
  const PaddedRows padded(calls, q);
  const auto found =
      attend_segments(padded.take(q, padded.rows), padded.take(k, padded.keys), padded.take(v, padded.keys), padded.call);
  const auto out = padded.own.heads_of(found.out).masked_fill(padded.real.logical_not().unsqueeze(3), 0);
  padded.add(result.out, out, padded.rows);
  // Rows that are not real stand for the last one, which keeps its own.
  calls.form.normaliser_of(result.normaliser)
      .scatter_reduce_(2, padded.head_rows(), padded.real_normaliser(padded.own.normaliser_of(found.normaliser)), "amin");
}

void add_padded_gradients(const WindowCalls& calls, const at::Tensor& out_gradient, const at::Tensor& q, const at::Tensor& k,
                          const at::Tensor& v, const SegmentResult& result, const std::array<at::Tensor, 3>& gradients) {
  const PaddedRows padded(calls, q);
  const auto normaliser = calls.form.normaliser_of(result.normaliser).gather(2, padded.head_rows());
  const SegmentResult own{padded.take(result.out, padded.rows), padded.real_normaliser(normaliser).view({1, -1}),
                          result.rng_state, result.unused};
  const auto found = attend_segments_backward(padded.take(out_gradient, padded.rows), padded.take(q, padded.rows),
                                              padded.take(k, padded.keys), padded.take(v, padded.keys), own, padded.call);
  padded.add(gradients[0], found[0], padded.rows);
  padded.add(gradients[1], found[1], padded.keys);
  padded.add(gradients[2], found[2], padded.keys);
}

/// Flash attention over each part, joined. Its backward takes output and log-sum-exp as arguments: with the joint ones, each
/// part's call gives its share of the joint gradients.
class WindowFunction : public torch::autograd::Function<WindowFunction> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const std::optional<at::Tensor>& global_rows, const WindowCalls& calls) {
    auto result = attend_segments(q, k, v, calls.near(q));
    result.out = result.out.contiguous();
    if (calls.lengths) attend_padded(calls, q, k, v, result);
    if (calls.options.global > 0) {
      auto leading = attend_segments(q, calls.first_rows(k), calls.first_rows(v), calls.leading(q));
      leading.out = leading.out.contiguous();
      join(result, leading);
      calls.form.heads_of(result.out).narrow(2, 0, calls.options.global).copy_(*global_rows);
    }
    context->save_for_backward({q, k, v, result.out, result.normaliser, result.rng_state, result.unused,
                                calls.lengths ? *calls.lengths : at::Tensor()});
    const auto& [batch, heads, rows, by_head] = calls.form;
    context->saved_data["sizes"] = std::vector<std::int64_t>{batch, heads, rows, calls.options.window, calls.options.global};
    context->saved_data["by_head"] = by_head;
    context->saved_data["causal"] = calls.options.causal;
    return result.out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list out_gradients) {
    const auto saved = context->get_saved_variables();
    const auto sizes = context->saved_data["sizes"].toIntVector();
    const WindowCalls calls{{sizes[0], sizes[1], sizes[2], context->saved_data["by_head"].toBool()},
                            saved[7].defined() ? std::optional(saved[7]) : std::nullopt,
                            {sizes[3], sizes[4], context->saved_data["causal"].toBool()}};
    const auto &q = saved[0], &k = saved[1], &v = saved[2];
    const SegmentResult result{saved[3], saved[4], saved[5], saved[6]};
    const auto out_gradient = out_gradients[0].contiguous();
    auto gradients = attend_segments_backward(out_gradient, q, k, v, result, calls.near(q));
    if (calls.lengths) add_padded_gradients(calls, out_gradient, q, k, v, result, gradients);
    at::Tensor global_gradient;
    if (calls.options.global > 0) {
      const auto leading =
          attend_segments_backward(out_gradient, q, calls.first_rows(k), calls.first_rows(v), result, calls.leading(q));
      gradients[0].add_(leading[0]);
      calls.add_to_first_rows(gradients[1], leading[1]);
      calls.add_to_first_rows(gradients[2], leading[2]);
      global_gradient = calls.form.heads_of(out_gradient).narrow(2, 0, calls.options.global);
    }
    return {gradients[0], gradients[1], gradients[2], global_gradient, at::Tensor()};
  }
};

}  // namespace

at::Tensor window_by_flash(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const std::optional<at::Tensor>& lengths, const std::optional<at::Tensor>& global_rows,
                           const WindowOptions& options) {
  const auto form = SequenceForm::of(q);
  if (lengths || options.global > 0)
    return form.heads_of(WindowFunction::apply(form.packed(q), form.packed(k), form.packed(v), global_rows,
                                               WindowCalls{form, lengths, options}));
  const auto out = std::get<0>(at::_flash_attention_forward(form.sequences_of(q), form.sequences_of(k), form.sequences_of(v),
                                                            {}, {}, form.rows, form.rows, 0.0, false, false, std::nullopt,
                                                            options.window, options.causal ? 0 : options.window));
  return form.heads_of(out);
}

}  // namespace transpool

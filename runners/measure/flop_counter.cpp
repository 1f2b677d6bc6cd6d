#include "runners/measure/flop_counter.h"

#include <ATen/record_function.h>

#include <mutex>

namespace transpool {
namespace {

std::mutex counting;
CountedFlops* counted = nullptr;
thread_local int depth = 0;  // calls inside a counted call are part of it

/// Marks that a call was counted, so that its end lowers the depth.
struct Counted : at::ObserverContext {};

std::unique_ptr<at::ObserverContext> on_call(const at::RecordFunction& call) {
  const auto formula = flop_formulas().find(call.name());
  if (formula == flop_formulas().end()) return nullptr;
  if (depth++ == 0) {
    const auto flops = formula->second(call.inputs());
    const std::lock_guard lock(counting);
    if (counted != nullptr) {
      counted->total += flops.total;
      counted->recomputed += flops.recomputed;
      counted->spared += flops.spared;
      counted->calls[call.name()] += flops.total;
    }
  }
  return std::make_unique<Counted>();
}

void on_end(const at::RecordFunction&, at::ObserverContext* context) {
  if (context != nullptr) --depth;
}

}  // namespace

CountedFlops count_flops(const std::function<void()>& run) {
  CountedFlops result;
  {
    const std::lock_guard lock(counting);
    counted = &result;
  }
  const auto handle = at::addGlobalCallback(
      at::RecordFunctionCallback(on_call, on_end).needsInputs(true).scopes({at::RecordScope::FUNCTION}));
  try {
    run();
  } catch (...) {
    at::removeCallback(handle);
    counted = nullptr;
    throw;
  }
  at::removeCallback(handle);
  const std::lock_guard lock(counting);
  counted = nullptr;
  return result;
}

}  // namespace transpool

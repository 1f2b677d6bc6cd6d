#pragma once

#include <ATen/core/ivalue.h>
#include <c10/util/ArrayRef.h>

#include <functional>
#include <map>
#include <string>

namespace transpool {

/// FLOPs of one dispatched call. `recomputed` is the part of `total` that repeats forward work in a backward call; `spared`,
/// no part of it, is what the matrix products that the call stands for would take beyond it.
struct CallFlops {
  double total = 0;
  double recomputed = 0;
  double spared = 0;
};

/// Reads the call's FLOPs off its arguments' shapes.
using FlopFormula = std::function<CallFlops(c10::ArrayRef<const c10::IValue> arguments)>;

/// Dispatcher name ("aten::mm", "transpool::weighted_gather") -> formula. Calls without a formula are not contractions.
const std::map<std::string, FlopFormula>& flop_formulas();

struct RegisterFlopFormula {
  RegisterFlopFormula(const std::string& name, FlopFormula formula);
};

}  // namespace transpool

#pragma once

#include "operators/flop_formula.h"

#include <map>

namespace transpool {

struct CountedFlops {
  double total = 0;
  double recomputed = 0;                ///< part of total: backward calls that repeat forward work (flash attention)
  double spared = 0;                    ///< no part of total: products that structure of a factor makes needless
  std::map<std::string, double> calls;  ///< dispatcher name -> FLOPs
};

/// FLOPs of the contractions that `run` dispatches, on all threads, by the formulas of operators/flop_formula.h.
CountedFlops count_flops(const std::function<void()>& run);

}  // namespace transpool

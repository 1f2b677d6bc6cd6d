#pragma once

#include "operators/pooling/relaxed_subset.cuh"

#include <type_traits>

namespace transpool {
namespace {

/// A round is a short series of p where the total of all weights is so many times 1 + power: p and power * p are under this
/// number's inverse. The terms below then leave out less than S holds.
template <class S>
constexpr double smooth = std::is_same_v<S, double> ? 512 : 16;

__device__ inline double series_scale(int q) { return (q == 0 ? 1.0 : 2.0) / nodes; }

/// 1 - (1 - p)^power for small p and power * p (see `smooth`), by the binomial series.
struct Binomial {
  static constexpr int terms = 7;
  double factor[terms];

  __device__ explicit Binomial(double power) {
    for (int i = 0; i < terms; ++i) factor[i] = (power - i) / (i + 1);
  }
  __device__ double operator()(double p) const {
    double sum = 1;
#pragma unroll
    for (int i = terms - 1; i > 0; --i) sum = 1 - factor[i] * p * sum;
    return factor[0] * p * sum;
  }
};

__device__ inline void fill_table(double (&table)[nodes][nodes + 1]) {
  for (int i = static_cast<int>(threadIdx.x); i < nodes * nodes; i += static_cast<int>(blockDim.x))
    table[i / nodes][i % nodes] = cospi((i / nodes) * (i % nodes + 0.5) / nodes);
}

/// call<S>() for the type of the sums.
template <class Call>
const char* by_sum(const RelaxedSubsetArguments& a, Call call) {
  if (a.element == Element::float64) call.template operator()<double>();
  else call.template operator()<float>();
  return launch_error();
}

}  // namespace
}  // namespace transpool

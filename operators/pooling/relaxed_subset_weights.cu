#include "operators/pooling/relaxed_subset.cuh"

#include <type_traits>

namespace transpool {
namespace {

constexpr int threads = 128;
constexpr int window = relaxed_subset_window;

/// Adjacent columns of a thread.
template <class S>
constexpr int columns = std::is_same_v<S, double> ? 1 : 4;

struct Place {
  std::int64_t batch_row, number, first_round, column;
  int rounds;

  template <class S>
  __device__ static Place of(const RelaxedSubsetArguments& a) {
    constexpr auto window = relaxed_subset_window;
    const auto first = static_cast<std::int64_t>(blockIdx.y) * window;
    return {static_cast<std::int64_t>(blockIdx.z), static_cast<std::int64_t>(blockIdx.y), first,
            (static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x) * columns<S>,
            static_cast<int>(min(window, a.rounds - first))};
  }
};

template <class E, int V, class S>
__device__ void store(E* row, std::int64_t column, std::int64_t length, const S (&value)[V]) {
  Pack<E, V> pack;
#pragma unroll
  for (int v = 0; v < V; ++v) pack.element[v] = static_cast<E>(value[v]);
  if (length % V == 0) {
    if (column < length) *reinterpret_cast<Pack<E, V>*>(row + column) = pack;
    return;
  }
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (column + v < length) row[column + v] = pack.element[v];
}

template <class S, class E, int Q>
__device__ void interpolated(const RelaxedSubsetArguments& a, const Place& place, S* coefficients) {
  constexpr int V = columns<S>;
  for (int i = static_cast<int>(threadIdx.x); i < place.rounds * Q; i += threads)
    coefficients[i] =
        static_cast<const S*>(a.coefficients)[(place.batch_row * a.rounds + place.first_round + i / Q) * nodes + i % Q];
  S basis[V][Q];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const auto own = column_of<S>(a, place.batch_row, place.column + v);
    Polynomials<S> polynomials(own.element[0], own.element[1]);
#pragma unroll
    for (int q = 0; q < Q; ++q) basis[v][q] = polynomials.next();
  }
  __syncthreads();
  auto* row = static_cast<E*>(a.weights) + (place.batch_row * a.rounds + place.first_round) * a.length;
  for (int i = 0; i < place.rounds; ++i, row += a.length) {
    S weight[V] = {};
#pragma unroll
    for (int q = 0; q < Q; q += 4) {
      const auto factor = *reinterpret_cast<const Pack<S, 4>*>(coefficients + i * Q + q);
#pragma unroll
      for (int f = 0; f < 4; ++f)
#pragma unroll
        for (int v = 0; v < V; ++v) weight[v] += factor.element[f] * basis[v][q + f];
    }
    store<E, V>(row, place.column, a.length, weight);
  }
}

/// From the last a that was kept: with the sums known, each column goes its own way.
template <class S, class E>
__device__ void by_column(const RelaxedSubsetArguments& a, const Place& place) {
  constexpr int V = columns<S>;
  const auto windows = (a.rounds + window - 1) / window;
  const double* start = a.checkpoints + (place.batch_row * windows + place.number) * a.length;
  double now[V];
#pragma unroll
  for (int v = 0; v < V; ++v) now[v] = place.column + v < a.length ? start[place.column + v] : floor_logit;
  auto* row = static_cast<E*>(a.weights) + (place.batch_row * a.rounds + place.first_round) * a.length;
  for (int i = 0; i < place.rounds; ++i, row += a.length) {
    const Lead lead(a, place.batch_row, place.first_round + i);
    double weight[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      weight[v] = exp(lead.log_weight(now[v]));
      now[v] = lead.after(now[v], weight[v]);
    }
    store<E, V>(row, place.column, a.length, weight);
  }
}

/// Batch rows whose weights need few coefficients, which leaves registers for more blocks.
template <class S, class E>
__global__ void __launch_bounds__(threads) short_series_kernel(RelaxedSubsetArguments a) {
  __shared__ alignas(32) S coefficients[window * most_slice];
  const auto place = Place::of<S>(a);
  const int degree = a.degree[place.batch_row];
  if (degree == 0 || degree > most_slice) return;
  if (degree <= 8) interpolated<S, E, 8>(a, place, coefficients);
  else if (degree <= 12) interpolated<S, E, 12>(a, place, coefficients);
  else interpolated<S, E, most_slice>(a, place, coefficients);
}

/// All others.
template <class S, class E>
__global__ void __launch_bounds__(threads) weights_kernel(RelaxedSubsetArguments a) {
  __shared__ alignas(32) S coefficients[window * nodes];
  const auto place = Place::of<S>(a);
  const int degree = a.degree[place.batch_row];
  if (degree == 0) by_column<S, E>(a, place);
  else if (degree > most_slice) interpolated<S, E, nodes>(a, place, coefficients);
}

}  // namespace

const char* relaxed_subset_weights_cuda(const RelaxedSubsetArguments& arguments, void* stream) {
  by_element(arguments.element, [&]<class S, class E>() {
    constexpr int block = threads * columns<S>;
    const dim3 grid(static_cast<unsigned>((arguments.length + block - 1) / block),
                    static_cast<unsigned>((arguments.rounds + window - 1) / window), static_cast<unsigned>(arguments.batch));
    short_series_kernel<S, E><<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments);
    weights_kernel<S, E><<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments);
  });
  return launch_error();
}

}  // namespace transpool

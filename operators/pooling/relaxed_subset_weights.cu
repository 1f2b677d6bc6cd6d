#include "operators/pooling/relaxed_subset.cuh"

#include <type_traits>

namespace transpool {
namespace {

constexpr int threads = 128;
constexpr int window = relaxed_subset_window;

/// Adjacent columns of a thread.
template <class S>
constexpr int columns = std::is_same_v<S, double> ? 1 : 4;
constexpr int most_blocks = 1056;  // that go through all columns and windows: few, since most launches find nothing to do

template <class S>
__host__ __device__ std::int64_t blocks_of(const RelaxedSubsetArguments& a) {
  constexpr int block = threads * columns<S>;
  return (a.length + block - 1) / block;
}
__host__ __device__ inline std::int64_t windows_of(const RelaxedSubsetArguments& a) {
  return (a.rounds + window - 1) / window;
}

/// Some rounds and columns of a batch row.
struct Place {
  std::int64_t batch_row, number, first_round, column;
  int rounds;

  /// Number `i` of a.batch * windows * blocks.
  template <class S>
  __device__ static Place of(const RelaxedSubsetArguments& a, std::int64_t i) {
    const auto blocks = blocks_of<S>(a), windows = windows_of(a), number = i / blocks % windows;
    return {i / blocks / windows, number, number * window, (i % blocks * threads + threadIdx.x) * columns<S>,
            static_cast<int>(min(static_cast<std::int64_t>(window), a.rounds - number * window))};
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

/// From the last a that was kept: with the sums known, each column goes its own way.
template <class S, class E>
__device__ void by_column(const RelaxedSubsetArguments& a, const Place& place) {
  constexpr int V = columns<S>;
  const double* start = a.checkpoints + (place.batch_row * windows_of(a) + place.number) * a.length;
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

template <class S, class E>
__global__ void __launch_bounds__(threads) weights_kernel(RelaxedSubsetArguments a, std::int64_t places) {
  if (!any_by_column(a)) return;
  for (std::int64_t i = blockIdx.x; i < places; i += gridDim.x) {
    const auto place = Place::of<S>(a, i);
    if (a.degree[place.batch_row] == 0) by_column<S, E>(a, place);
  }
}

}  // namespace

const char* relaxed_subset_weights_cuda(const RelaxedSubsetArguments& arguments, void* stream) {
  by_element(arguments.element, [&]<class S, class E>() {
    const auto places = arguments.batch * windows_of(arguments) * blocks_of<S>(arguments);
    const auto blocks = static_cast<unsigned>(places < most_blocks ? places : most_blocks);
    launch(weights_kernel<S, E>, dim3(blocks), threads, false, stream, arguments, places);
  });
  return launch_error();
}

}  // namespace transpool

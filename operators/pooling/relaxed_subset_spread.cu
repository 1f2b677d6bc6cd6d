#include "operators/pooling/relaxed_subset_series.cuh"

#include <cuda_pipeline.h>

#include <algorithm>

namespace transpool {
namespace {

constexpr int spread_threads = 256;
constexpr int spread_warp_rows = 16;
constexpr int spread_rows = spread_threads / lanes * spread_warp_rows;
constexpr int spread_blocks = 256;  // that are enough to keep the device busy
/// Columns of the series that stand in shared memory at a time.
template <class S>
constexpr int chunk = 512 / sizeof(S);

template <class S>
struct SeriesChunks {
  S of[2][nodes][chunk<S> + pack<S>];

  /// Sends for a chunk of Q terms.
  template <int Q>
  __device__ void fetch(const S* series, std::int64_t column, std::int64_t stride, int turn) {
    constexpr int packs = chunk<S> / pack<S>;
    for (int i = static_cast<int>(threadIdx.x); i < Q * packs; i += spread_threads)
      __pipeline_memcpy_async(&of[turn][i / packs][i % packs * pack<S>],
                              series + (i / packs) * stride + column + i % packs * pack<S>, 16);
    __pipeline_commit();
  }
};

/// The dots of a warp's rows with Q terms of a series.
template <class S, class E, int Q>
struct Dots {
  static constexpr int V = lane_columns<E>, P = pack<S>;
  S now[Q / 16][2][4] = {}, before[Q / 16][2][4] = {};

  /// `series` at the lane's columns of half a step.
  __device__ void add(const S (*series)[chunk<S> + pack<S>], int column, const RawPack<E, V>& upper,
                      const RawPack<E, V>& lower) {
    const int g = static_cast<int>(threadIdx.x) % lanes / 4;
#pragma unroll
    for (int p = 0; p < V; p += P)
#pragma unroll
      for (int m = 0; m < Q / 16; ++m) {
        const auto first = *reinterpret_cast<const Pack<S, P>*>(&series[m * 16 + g][column + p]);
        const auto second = *reinterpret_cast<const Pack<S, P>*>(&series[m * 16 + g + 8][column + p]);
#pragma unroll
        for (int i = 0; i < P; i += 2) {
          Digits<S, 4> left;
#pragma unroll
          for (int e = 0; e < 4; ++e) left.template set<false>(e, (e % 2 ? second : first).element[i + e / 2]);
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            Digits<S, 2> right;
#pragma unroll
            for (int e = 0; e < 2; ++e) right.template set<is_exact<E>>(e, (r ? lower : upper).at(p + i + e));
            add_product<is_brief<E>, is_exact<E>>(now[m][r], left, right);
          }
        }
      }
  }
  /// Tensor cores cut off what they add to.
  __device__ void settle() {
#pragma unroll
    for (int i = 0; i < Q / 16 * 8; ++i) {
      before[i / 8][i / 4 % 2][i % 4] += now[i / 8][i / 4 % 2][i % 4];
      now[i / 8][i / 4 % 2][i % 4] = 0;
    }
  }
  /// call(q, row of the warp, dot) for what the lane has.
  template <class Call>
  __device__ void each(Call call) const {
    const int g = static_cast<int>(threadIdx.x) % lanes / 4, t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int m = 0; m < Q / 16; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int e = 0; e < 4; ++e) call(m * 16 + e / 2 * 8 + g, r * 8 + 2 * t + e % 2, before[m][r][e]);
  }
};

/// The factors of a warp's rows as the right of a block product.
template <class S, int Q>
struct SpreadFactors {
  Digits<S, 2> of[2][Q / 8];

  __device__ SpreadFactors(const RowFactors<S>& factors, std::int64_t first_row) {
    const int g = static_cast<int>(threadIdx.x) % lanes / 4, t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      S own[Q / 4] = {};
      factors.template each<Q>(first_row + r * 8 + g, [&](int q, S value) { own[q / 4] = q % 4 == t ? value : own[q / 4]; });
#pragma unroll
      for (int i = 0; i < Q / 4; ++i) of[r][i / 2].template set<false>(i % 2, own[i]);
    }
  }
};

/// Rows of a step's columns from the series: of each lane, four rows at adjacent columns.
template <class S, class E, int Q>
struct SpreadStep {
  static constexpr int V = lane_columns<E>, P = pack<S>;
  S sum[V / 2][2][4] = {};

  __device__ SpreadStep(const S (*series)[chunk<S> + pack<S>], int column, const SpreadFactors<S, Q>& factors) {
    const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int p = 0; p < V; p += P)
#pragma unroll
      for (int q = 0; q < Q; q += 8) {
        const auto first = *reinterpret_cast<const Pack<S, P>*>(&series[q + t][column + p]);
        const auto second = *reinterpret_cast<const Pack<S, P>*>(&series[q + t + 4][column + p]);
#pragma unroll
        for (int i = 0; i < P; i += 2) {
          Digits<S, 4> left;
#pragma unroll
          for (int e = 0; e < 4; ++e) left.template set<false>(e, (e / 2 ? second : first).element[i + e % 2]);
#pragma unroll
          for (int r = 0; r < 2; ++r) add_product<is_brief<E>, is_brief<E>>(sum[(p + i) / 2][r], left, factors.of[r][q / 8]);
        }
      }
  }

  template <bool Aligned>
  __device__ void write(E* rows, std::int64_t first_row, std::int64_t count, std::int64_t valid, std::int64_t column,
                        std::int64_t width) const {
    const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto row = first_row + i / 2 * 8 + 2 * t + i % 2;
      if (row >= count || column >= width) continue;
      Pack<E, V> result;
#pragma unroll
      for (int v = 0; v < V; ++v)
        result.element[v] = static_cast<E>(row < valid ? sum[v / 2][i / 2][v % 2 * 2 + i % 2] : S(0));
      E* to = rows + row * width + column;
      if constexpr (Aligned) {
        *reinterpret_cast<Pack<E, V>*>(to) = result;
      } else {
#pragma unroll
        for (int v = 0; v < V; ++v)
          if (column + v < width) to[v] = result.element[v];
      }
    }
  }
};

template <class S>
__device__ void write_dot(const RelaxedSubsetArguments& a, bool rounds, std::int64_t b, int q, std::int64_t row, S dot) {
  if (row >= (rounds ? a.rounds : a.length)) return;
  if (rounds) {
    const double mixed = static_cast<double>(static_cast<const S*>(a.mixed_gradient)[b * a.rounds + row]);
    const double scored = a.frame[b * frame_size + relaxed_subset_frame + nodes + q];
    static_cast<S*>(a.coefficient_gradient)[(b * a.rounds + row) * nodes + q] = dot + static_cast<S>(mixed * scored);
  } else {
    static_cast<S*>(a.polynomial_dots)[(b * nodes + q) * a.length + row] = dot;
  }
}

template <class S, class E, bool Aligned, int Q>
__device__ void spread(const RelaxedSubsetArguments& a, const Spread& pass, SeriesChunks<S>& chunks) {
  constexpr int V = lane_columns<E>, step_columns = warp_columns<E>, steps = chunk<S> / step_columns;
  const auto b = static_cast<std::int64_t>(blockIdx.y);
  const int lane = static_cast<int>(threadIdx.x) % lanes, warp = static_cast<int>(threadIdx.x) / lanes;
  const int g = lane / 4, t = lane % 4;
  const RowFactors<S> all{a, b, pass.rounds};
  const auto first_row = static_cast<std::int64_t>(blockIdx.x) * spread_rows + warp * spread_warp_rows;
  const auto stride = a.stride, count = all.count(), valid = all.valid();
  const S* series = static_cast<const S*>(pass.series) + b * nodes * stride;
  const Rows<E, Aligned> given{static_cast<const E*>(pass.given) + b * count * a.width, valid, a.width};
  RawPack<E, V> pieces[2][4];  // of two steps: at columns of its first and second half, rows g and g + 8
  const auto load = [&](int turn, std::int64_t column) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      pieces[turn][i] = given.at(first_row + g + i % 2 * 8, column + i / 2 * (step_columns / 2) + t * V);
  };
  const auto all_chunks = (a.width + chunk<S> - 1) / chunk<S>, span = (all_chunks + pass.spans - 1) / pass.spans * chunk<S>;
  const auto first = blockIdx.z * span, end = min(first + span, a.width);
  if (first >= end) return;
  chunks.template fetch<Q>(series, first, stride, 0);
  if (pass.given) {
    load(0, 0);
    load(1, step_columns);
  }
  const SpreadFactors<S, Q> factors(all, first_row);
  Dots<S, E, Q> dots;
  for (auto start = first; start < end; start += chunk<S>) {
    const auto turn = static_cast<int>((start - first) / chunk<S> % 2);
    __pipeline_wait_prior(0);
    __syncthreads();
    if (start + chunk<S> < end) chunks.template fetch<Q>(series, start + chunk<S>, stride, 1 - turn);
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      const int column = step * step_columns;
      auto& piece = pieces[step % 2];
      if (pass.given) {
        dots.add(chunks.of[turn], column + t * V, piece[0], piece[1]);
        dots.add(chunks.of[turn], column + step_columns / 2 + t * V, piece[2], piece[3]);
        load(step % 2, start + column + 2 * step_columns);
      }
      if (pass.result)
        SpreadStep<S, E, Q>(chunks.of[turn], column + g * V, factors)
            .template write<Aligned>(static_cast<E*>(pass.result) + b * count * a.width, first_row, count, valid,
                                     start + column + g * V, a.width);
    }
    dots.settle();
  }
  if (pass.given) dots.each([&](int q, int row, S dot) { write_dot(a, pass.rounds, b, q, first_row + row, dot); });
}

template <class S, class E, bool Aligned>
__global__ void __launch_bounds__(spread_threads, 2) spread_kernel(RelaxedSubsetArguments a, Spread pass) {
  __shared__ alignas(16) SeriesChunks<S> chunks;
  const int terms = terms_of(a.degree[blockIdx.y]);
  if (terms == few_terms) spread<S, E, Aligned, few_terms>(a, pass, chunks);
  else if (terms > 0) spread<S, E, Aligned, nodes>(a, pass, chunks);
  end_after_previous();
}

}  // namespace

void spread_series(const RelaxedSubsetArguments& a, Spread pass, bool beside, void* stream) {
  by_element(a.element, [&]<class S, class E>() {
    const auto rows = ((pass.rounds ? a.rounds : a.length) + spread_rows - 1) / spread_rows;
    if (!pass.given)
      pass.spans = static_cast<int>(
          std::clamp<std::int64_t>(spread_blocks / (rows * a.batch), 1, (a.width + chunk<S> - 1) / chunk<S>));
    const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(a.batch), static_cast<unsigned>(pass.spans));
    auto* kernel = aligned<S, E>(a, {pass.given, pass.result}) ? spread_kernel<S, E, true> : spread_kernel<S, E, false>;
    launch(kernel, grid, spread_threads, beside, stream, a, pass);
  });
}

const char* relaxed_subset_series_values_cuda(const RelaxedSubsetArguments& a, void* stream) {
  spread_series(a, {true, a.row_moments, nullptr, a.values}, /*beside=*/false, stream);
  return launch_error();
}

const char* relaxed_subset_series_backward_cuda(const RelaxedSubsetArguments& a, bool beside_rounds, void* stream) {
  spread_series(a, {false, a.round_moments, a.polynomial_dots ? a.x : nullptr, a.x_gradient}, beside_rounds, stream);
  return launch_error();
}

}  // namespace transpool

#include "operators/pooling/occupancy.cuh"
#include "operators/pooling/relaxed_subset.cuh"
#include "operators/pooling/relaxed_subset_tiles.cuh"

#include <cuda_pipeline.h>

#include <algorithm>
#include <type_traits>

namespace transpool {
namespace {

/// Of S in 16 bytes.
template <class S>
constexpr int pack = 16 / sizeof(S);
/// Elements of a lane in a row, and of the eight lanes that share one.
template <class E>
constexpr int lane_columns = 16 / sizeof(E);
template <class E>
constexpr int warp_columns = 8 * lane_columns<E>;

/// Whether elements have no more digits than the eleven that tensor cores take.
template <class E>
constexpr bool is_exact = sizeof(E) == 2;
/// Whether eleven are enough for what they are multiplied by too. Terms of a series cancel each other, so that results have
/// two or three less.
template <class E>
constexpr bool is_brief = std::is_same_v<E, __nv_bfloat16>;

/// Rows of `width` elements of a batch row. Those from `valid` on may hold anything and count as 0.
template <class E, bool Aligned>
struct Rows {
  static constexpr int V = lane_columns<E>;
  const E* data;
  std::int64_t valid, width;

  __device__ RawPack<E, V> at(std::int64_t row, std::int64_t column) const {
    RawPack<E, V> result;
    if (row >= valid || column >= width) return result;
    const E* from = data + row * width + column;
    if constexpr (Aligned) {
      result.read(from);
    } else {
      Pack<E, V> pack = {};
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (column + v < width) pack.element[v] = from[v];
      result.read(pack.element);
    }
    return result;
  }
};

/// Rows that go with factors: those of x with the polynomials of their scores, or rounds with their coefficients.
template <class S>
struct RowFactors {
  const RelaxedSubsetArguments& a;
  std::int64_t b;
  bool rounds;

  __device__ std::int64_t count() const { return rounds ? a.rounds : a.length; }
  __device__ std::int64_t valid() const { return rounds ? a.rounds : valid_rows(a, b); }
  __device__ const S* coefficients_of(std::int64_t round) const {
    return static_cast<const S*>(a.coefficients) + (b * a.rounds + round) * nodes;
  }
  /// call(q, factor of the row) for q = 0, 1, ...; all 0 past the last row.
  template <int Q, class Call>
  __device__ void each(std::int64_t row, Call call) const {
    if (rounds) {
#pragma unroll
      for (int q = 0; q < Q; q += pack<S>) {
        Pack<S, pack<S>> own = {};
        if (row < a.rounds) own = *reinterpret_cast<const Pack<S, pack<S>>*>(coefficients_of(row) + q);
#pragma unroll
        for (int i = 0; i < pack<S>; ++i) call(q + i, own.element[i]);
      }
    } else {
      const auto place = column_of<S>(a, b, row);
      Polynomials<S> polynomials(place.element[0], place.element[1]);
#pragma unroll
      for (int q = 0; q < Q; ++q) call(q, polynomials.next());
    }
  }
};

constexpr int gather_threads = 128;
constexpr int gather_warps = gather_threads / lanes;
constexpr int gather_resident = 2;  // blocks of a multiprocessor, by their registers
constexpr int gather_depth = 4;     // steps of eight rows that are on their way
/// Rows whose factors stand in shared memory at a time.
template <class S>
constexpr int gather_rows = 512 / sizeof(S);
/// Warps of a block that may share its columns, each with rows of its own.
template <class S>
constexpr int most_row_warps = gather_rows<S> / (8 * gather_depth);

/// How the warps of a block, and the blocks of a batch row, share rows and columns.
struct GatherShape {
  int row_warps = 1, column_blocks = 1, parts = 1;
  std::int64_t rows = 0;  // of a part

  int slots() const { return parts * row_warps; }
};

/// Sums over the rounds, or over the rows of x beside the rounds. All blocks run at once, unless batch rows alone are more;
/// where a batch row's rounds run there is no room for them.
template <class S, class E>
GatherShape gather_shape(const RelaxedSubsetArguments& a, bool rounds) {
  GatherShape shape;
  const auto columns = [&] { return warp_columns<E> * (gather_warps / shape.row_warps); };
  while (shape.row_warps < most_row_warps<S> && columns() / 2 >= a.width) shape.row_warps *= 2;
  shape.column_blocks = static_cast<int>((a.stride + columns() - 1) / columns());
  const std::int64_t all = processors(), free = rounds ? all : std::max(all - a.batch, all / 2);
  const auto wanted = std::max<std::int64_t>(free * gather_resident / (a.batch * shape.column_blocks), 1);
  constexpr std::int64_t turn = 8 * gather_depth, least = gather_rows<S>;
  const auto rows = rounds ? a.rounds : a.length;
  shape.rows = std::max(least, ((rows + wanted - 1) / wanted + turn - 1) / turn * turn);
  shape.parts = static_cast<int>(std::max<std::int64_t>((rows + shape.rows - 1) / shape.rows, 1));
  return shape;
}

template <class S>
struct alignas(16) FactorTile {
  S of[gather_rows<S>][nodes + 8];  // apart so that the lanes of a block product read from different banks

  /// The polynomials of a thread's row.
  __device__ void fill(const Pack<S, 2>& place) {
    if (threadIdx.x >= gather_rows<S>) return;
    Polynomials<S> polynomials(place.element[0], place.element[1]);
#pragma unroll
    for (int q = 0; q < nodes; q += pack<S>) {
      Pack<S, pack<S>> own;
#pragma unroll
      for (int i = 0; i < pack<S>; ++i) own.element[i] = polynomials.next();
      *reinterpret_cast<Pack<S, pack<S>>*>(&of[threadIdx.x][q]) = own;
    }
  }
  /// The coefficients of the rounds from `first` on.
  __device__ void fill(const RowFactors<S>& factors, std::int64_t first) {
    constexpr int packs = nodes / pack<S>;
#pragma unroll 8
    for (int i = static_cast<int>(threadIdx.x); i < gather_rows<S> * packs; i += gather_threads) {
      const int row = i / packs, q = i % packs * pack<S>;
      Pack<S, pack<S>> own = {};
      if (first + row < factors.count())
        own = *reinterpret_cast<const Pack<S, pack<S>>*>(factors.coefficients_of(first + row) + q);
      *reinterpret_cast<Pack<S, pack<S>>*>(&of[row][q]) = own;
    }
  }
  /// Sixteen factors from q on of eight rows, as the left of a block product.
  __device__ Digits<S, 4> left(int row, int q) const {
    const int g = static_cast<int>(threadIdx.x) % lanes / 4, t = static_cast<int>(threadIdx.x) % 4;
    Digits<S, 4> result;
#pragma unroll
    for (int i = 0; i < 4; ++i) result.template set<false>(i, of[row + t + i / 2 * 4][q + g + i % 2 * 8]);
    return result;
  }
};

/// The sums over a warp's rows of factor times element, of all nodes and of the columns of a warp. Tensor cores cut off what
/// they add to, so that sums of float32 elements are taken from them now and then.
template <class S, class E>
struct MomentSums {
  static constexpr int V = lane_columns<E>;
  static constexpr bool apart = std::is_same_v<E, float>;
  S now[2][V][4] = {}, before[apart ? 2 : 1][apart ? V : 1][4] = {};

  __device__ void add(const FactorTile<S>& tile, int row, const RawPack<E, V> (&x)[2]) {
    const Digits<S, 4> factors[2] = {tile.left(row, 0), tile.left(row, 16)};
#pragma unroll
    for (int v = 0; v < V; ++v) {
      Digits<S, 2> elements;
#pragma unroll
      for (int i = 0; i < 2; ++i) elements.template set<is_exact<E>>(i, x[i].at(v));
#pragma unroll
      for (int m = 0; m < 2; ++m) add_product<is_brief<E>, is_exact<E>>(now[m][v], factors[m], elements);
    }
  }
  __device__ void settle() {
    if constexpr (apart)
#pragma unroll
      for (int i = 0; i < 2 * V * 4; ++i) {
        before[i / (V * 4)][i / 4 % V][i % 4] += now[i / (V * 4)][i / 4 % V][i % 4];
        now[i / (V * 4)][i / 4 % V][i % 4] = 0;
      }
  }
  /// To nodes that are `stride` apart, from the warp's first column on.
  __device__ void write(S* to, std::int64_t stride) const {
    const int g = static_cast<int>(threadIdx.x) % lanes / 4, t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int q = 0; q < 4; ++q)
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const int part = q % 2 * 2 + i;
          to[(q * 8 + g) * stride + (2 * t + i) * V + v] = apart ? before[q / 2][v][part] : now[q / 2][v][part];
        }
  }
};

/// Sums over the rows of each part, of factors times rows: Phi^T x or C^T values_gradient.
template <class S, class E, bool Aligned>
__device__ void gather(const RelaxedSubsetArguments& a, const GatherShape& shape, bool rounds, FactorTile<S>& tile) {
  constexpr int depth = gather_depth;
  const auto b = static_cast<std::int64_t>(blockIdx.z);
  const int lane = static_cast<int>(threadIdx.x) % lanes, warp = static_cast<int>(threadIdx.x) / lanes;
  const int g = lane / 4, t = lane % 4, row_warp = warp % shape.row_warps;
  const auto first_column =
      (static_cast<std::int64_t>(blockIdx.x) * (gather_warps / shape.row_warps) + warp / shape.row_warps) * warp_columns<E>;
  const auto column = first_column + g * lane_columns<E>;
  const RowFactors<S> factors{a, b, rounds};
  const auto* data = static_cast<const E*>(rounds ? a.values_gradient : a.x) + b * factors.count() * a.width;
  const auto first = blockIdx.y * shape.rows, end = min(first + shape.rows, factors.valid());
  const Rows<E, Aligned> x{data, end, a.width};
  // Of a tile, a warp takes `steps` times eight rows.
  const int steps = gather_rows<S> / 8 / shape.row_warps;
  RawPack<E, lane_columns<E>> pieces[depth][2];
  const auto load = [&](int turn, std::int64_t row) {
    pieces[turn][0] = x.at(row + t, column);
    pieces[turn][1] = x.at(row + t + 4, column);
  };
#pragma unroll
  for (int turn = 0; turn < depth; ++turn) load(turn, first + (row_warp * steps + turn) * 8);
  // Of the next tile, since all wait for it.
  const auto place_of = [&](std::int64_t start) {
    const bool own = !rounds && threadIdx.x < gather_rows<S>;
    return own ? column_of<S>(a, b, start + threadIdx.x) : Pack<S, 2>{};
  };
  auto place = place_of(first);
  MomentSums<S, E> sums;
  for (auto start = first; start < end; start += gather_rows<S>) {
    __syncthreads();
    if (rounds) tile.fill(factors, start);
    else tile.fill(place);
    place = place_of(start + gather_rows<S>);
    __syncthreads();
    for (int step = 0; step < steps && start + (row_warp * steps + step) * 8 < end; step += depth) {
      const auto next = step + depth < steps ? start + (row_warp * steps + step + depth) * 8
                                             : start + gather_rows<S> + row_warp * steps * 8;
#pragma unroll
      for (int turn = 0; turn < depth; ++turn) {
        sums.add(tile, (row_warp * steps + step + turn) * 8, pieces[turn]);
        load(turn, next + turn * 8);
      }
    }
    sums.settle();
  }
  if (first_column >= a.stride) return;
  const auto slot = (b * shape.parts + blockIdx.y) * shape.row_warps + row_warp;
  sums.write(static_cast<S*>(a.partial_moments) + slot * nodes * a.stride + first_column, a.stride);
}

template <class S, class E, bool Aligned>
__global__ void __launch_bounds__(gather_threads, gather_resident)
    gather_kernel(RelaxedSubsetArguments a, GatherShape shape, bool rounds) {
  __shared__ FactorTile<S> tile;
  let_next_begin();
  if (!rounds || a.degree[blockIdx.z] > 0) gather<S, E, Aligned>(a, shape, rounds, tile);
  end_after_previous();
}

constexpr int sum_threads = 256;

/// `degree`: null, or batch rows of degree 0 have no parts.
template <class S>
__global__ void __launch_bounds__(sum_threads)
    sum_kernel(const S* partial, S* sums, int slots, std::int64_t size, const int* degree) {
  const auto b = static_cast<std::int64_t>(blockIdx.y);
  const auto i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= size || (degree && degree[b] == 0)) return;
  S sum = 0;
#pragma unroll 8
  for (int slot = 0; slot < slots; ++slot) sum += partial[(b * slots + slot) * size + i];
  sums[b * size + i] = sum;
}

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

/// What a pass over rows does: multiplies factors and series to rows, and rows and series to dots.
struct Spread {
  bool rounds;         // whose coefficients the factors are; else they are the polynomials of each row of x
  const void* series;  // (batch, nodes, stride) S
  const void* given;   // rows whose dots are wanted; null: none
  void* result;        // rows; null: none
  int spans = 1;       // blocks that share the columns; where dots are wanted there is one
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

template <class S, class E>
bool aligned(const RelaxedSubsetArguments& a, std::initializer_list<const void*> pointers) {
  bool all = a.width % lane_columns<E> == 0;
  for (const void* pointer : pointers) all = all && reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
  return all;
}

void gather_moments(const RelaxedSubsetArguments& a, bool rounds, bool beside, void* stream) {
  by_element(a.element, [&]<class S, class E>() {
    const auto shape = gather_shape<S, E>(a, rounds);
    const dim3 grid(static_cast<unsigned>(shape.column_blocks), static_cast<unsigned>(shape.parts),
                    static_cast<unsigned>(a.batch));
    auto* kernel =
        aligned<S, E>(a, {rounds ? a.values_gradient : a.x}) ? gather_kernel<S, E, true> : gather_kernel<S, E, false>;
    launch(kernel, grid, gather_threads, beside, stream, a, shape, rounds);
  });
}

void sum_moments(const RelaxedSubsetArguments& a, bool rounds, void* stream) {
  by_element(a.element, [&]<class S, class E>() {
    const auto size = nodes * a.stride;
    const dim3 grid(static_cast<unsigned>((size + sum_threads - 1) / sum_threads), static_cast<unsigned>(a.batch));
    launch(sum_kernel<S>, grid, sum_threads, false, stream, static_cast<const S*>(a.partial_moments),
           static_cast<S*>(rounds ? a.round_moments : a.row_moments), gather_shape<S, E>(a, rounds).slots(), size,
           rounds ? a.degree : nullptr);
  });
}

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

}  // namespace

std::int64_t relaxed_subset_partial_moments(const RelaxedSubsetArguments& a, bool rounds) {
  std::int64_t numbers = 0;
  by_element(a.element,
             [&]<class S, class E>() { numbers = a.batch * gather_shape<S, E>(a, rounds).slots() * nodes * a.stride; });
  return numbers;
}

const char* relaxed_subset_row_moments_cuda(const RelaxedSubsetArguments& a, void* stream) {
  gather_moments(a, /*rounds=*/false, /*beside=*/true, stream);
  sum_moments(a, /*rounds=*/false, stream);
  return launch_error();
}

const char* relaxed_subset_series_values_cuda(const RelaxedSubsetArguments& a, void* stream) {
  spread_series(a, {true, a.row_moments, nullptr, a.values}, /*beside=*/false, stream);
  return launch_error();
}

const char* relaxed_subset_round_moments_cuda(const RelaxedSubsetArguments& a, void* stream) {
  gather_moments(a, /*rounds=*/true, /*beside=*/false, stream);
  if (a.coefficient_gradient) spread_series(a, {true, a.row_moments, a.values_gradient, nullptr}, /*beside=*/true, stream);
  sum_moments(a, /*rounds=*/true, stream);
  return launch_error();
}

const char* relaxed_subset_series_backward_cuda(const RelaxedSubsetArguments& a, bool beside_rounds, void* stream) {
  spread_series(a, {false, a.round_moments, a.polynomial_dots ? a.x : nullptr, a.x_gradient}, beside_rounds, stream);
  return launch_error();
}

}  // namespace transpool

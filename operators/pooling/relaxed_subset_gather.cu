#include "operators/pooling/relaxed_subset_series.cuh"

#include <algorithm>

namespace transpool {
namespace {

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

const char* relaxed_subset_round_moments_cuda(const RelaxedSubsetArguments& a, void* stream) {
  gather_moments(a, /*rounds=*/true, /*beside=*/false, stream);
  if (a.coefficient_gradient) spread_series(a, {true, a.row_moments, a.values_gradient, nullptr}, /*beside=*/true, stream);
  sum_moments(a, /*rounds=*/true, stream);
  return launch_error();
}

}  // namespace transpool

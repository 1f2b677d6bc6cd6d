#include "operators/pooling/relaxed_subset.cuh"
#include "operators/pooling/relaxed_subset_tiles.cuh"

namespace transpool {
namespace {

constexpr int threads = 256;
constexpr int tile_rows = 128, tile_columns = 64, tile_inner = 16;
constexpr int warp_rows = 32, warp_columns = 32;
constexpr int most_blocks = 264;  // that go through all tiles: few, since most launches find nothing to do

/// A factor of a product as it stands in memory.
struct Factor {
  const void* data;
  std::int64_t batch_step, row_step, column_step;
};

/// Which numbers of a product count the rows of x. Those past the valid ones may hold anything and count as 0.
enum class RowsOfX { rows, columns, inner };

/// result (batch, rows, columns) = left (batch, rows, inner) times right (batch, inner, columns).
struct Product {
  Factor left, right;
  void* result;
  std::int64_t rows, columns, inner;
  RowsOfX rows_of_x;
};

/// How a thread brings Rows x Columns elements of a factor: along the dimension that is contiguous, one of each `threads`.
template <class E, int Rows, int Columns>
struct Piece {
  static constexpr int count = Rows * Columns / threads;
  E element[count];

  static __device__ int row(bool along_rows, int i) {
    return along_rows ? static_cast<int>(threadIdx.x) % Rows
                      : static_cast<int>(threadIdx.x) / Columns + i * (threads / Columns);
  }
  static __device__ int column(bool along_rows, int i) {
    return along_rows ? static_cast<int>(threadIdx.x) / Rows + i * (threads / Rows)
                      : static_cast<int>(threadIdx.x) % Columns;
  }

  /// From (first row, first column) on; 0 from (rows, columns) on.
  __device__ void load(const Factor& factor, std::int64_t b, std::int64_t first_row, std::int64_t first_column,
                       std::int64_t rows, std::int64_t columns) {
    const bool along = factor.row_step == 1;
    const auto r = first_row + row(along, 0), c = first_column + column(along, 0);
    const auto* from =
        static_cast<const E*>(factor.data) + b * factor.batch_step + r * factor.row_step + c * factor.column_step;
    const auto step = along ? threads / Rows * factor.column_step : threads / Columns * factor.row_step;
    const auto left = along ? columns - c : rows - r;  // of what the elements differ in
    const auto apart = along ? threads / Rows : threads / Columns;
    const bool inside = r < rows && c < columns;
#pragma unroll
    for (int i = 0; i < count; ++i, from += step) element[i] = inside && i * apart < left ? *from : E(0.0f);
  }
};

/// Sums of float32 elements, or of others, of a warp's part of a tile.
template <class S, bool Exact>
struct TileSums {
  static constexpr int row_blocks = warp_rows / 16, column_blocks = warp_columns / 8;
  S of[row_blocks][column_blocks][4] = {};

  template <int Left, int Right>
  __device__ void add(const S (&left)[tile_inner][Left], const S (&right)[tile_inner][Right], int row, int column) {
    const int g = static_cast<int>(threadIdx.x) % lanes / 4, t = static_cast<int>(threadIdx.x) % 4;
    S now[row_blocks][column_blocks][4] = {};  // tensor cores cut off what they add to
#pragma unroll
    for (int inner = 0; inner < tile_inner; inner += 8) {
      Digits<S, 4> a[row_blocks];
#pragma unroll
      for (int i = 0; i < row_blocks; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) a[i].template set<Exact>(e, left[inner + t + e / 2 * 4][row + i * 16 + g + e % 2 * 8]);
#pragma unroll
      for (int j = 0; j < column_blocks; ++j) {
        Digits<S, 2> b;
#pragma unroll
        for (int e = 0; e < 2; ++e) b.template set<Exact>(e, right[inner + t + e * 4][column + j * 8 + g]);
#pragma unroll
        for (int i = 0; i < row_blocks; ++i) add_product<Exact, Exact>(now[i][j], a[i], b);
      }
    }
#pragma unroll
    for (int i = 0; i < row_blocks * column_blocks * 4; ++i)
      of[i / 4 / column_blocks][i / 4 % column_blocks][i % 4] += now[i / 4 / column_blocks][i / 4 % column_blocks][i % 4];
  }

  template <class E>
  __device__ void write(E* to, const Product& product, std::int64_t first_row, std::int64_t first_column) const {
    const int g = static_cast<int>(threadIdx.x) % lanes / 4, t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int i = 0; i < row_blocks; ++i)
#pragma unroll
      for (int j = 0; j < column_blocks; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const auto row = first_row + i * 16 + g + e / 2 * 8, column = first_column + j * 8 + 2 * t + e % 2;
          if (row < product.rows && column < product.columns)
            to[row * product.columns + column] = static_cast<E>(of[i][j][e]);
        }
  }
};

template <class S>
struct Tiles {
  S left[tile_inner][tile_rows + 8], right[tile_inner][tile_columns + 8];
};

template <class S, class E>
__device__ void multiply_tile(const Product& product, Tiles<S>& tiles, std::int64_t b, std::int64_t valid,
                              std::int64_t first_row, std::int64_t first_column) {
  using Left = Piece<E, tile_rows, tile_inner>;
  using Right = Piece<E, tile_inner, tile_columns>;
  const auto limit = [&](std::int64_t size, RowsOfX which) { return product.rows_of_x == which ? min(size, valid) : size; };
  const auto rows = limit(product.rows, RowsOfX::rows), columns = limit(product.columns, RowsOfX::columns);
  const auto inner = limit(product.inner, RowsOfX::inner);
  const int warp = static_cast<int>(threadIdx.x) / lanes;
  const int row = warp / (tile_columns / warp_columns) * warp_rows,
            column = warp % (tile_columns / warp_columns) * warp_columns;
  const bool left_along = product.left.row_step == 1, right_along = product.right.row_step == 1;
  Left left;
  Right right;
  const auto load = [&](std::int64_t first) {
    left.load(product.left, b, first_row, first, rows, inner);
    right.load(product.right, b, first, first_column, inner, columns);
  };
  TileSums<S, sizeof(E) == 2> sums;
  load(0);
  for (std::int64_t first = 0; first < inner; first += tile_inner) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Left::count; ++i)
      tiles.left[Left::column(left_along, i)][Left::row(left_along, i)] = static_cast<S>(left.element[i]);
#pragma unroll
    for (int i = 0; i < Right::count; ++i)
      tiles.right[Right::row(right_along, i)][Right::column(right_along, i)] = static_cast<S>(right.element[i]);
    __syncthreads();
    load(first + tile_inner);
    sums.add(tiles.left, tiles.right, row, column);
  }
  sums.write(static_cast<E*>(product.result) + b * product.rows * product.columns, product, first_row + row,
             first_column + column);
}

/// Of batch rows whose columns are taken one by one. Blocks take turns with all of their tiles.
template <class S, class E>
__global__ void __launch_bounds__(threads) product_kernel(RelaxedSubsetArguments a, Product product) {
  __shared__ Tiles<S> tiles;
  if (!any_by_column(a)) return;
  const auto down = (product.rows + tile_rows - 1) / tile_rows, across = (product.columns + tile_columns - 1) / tile_columns;
  std::int64_t i = blockIdx.x;
  for (std::int64_t b = 0; b < a.batch; ++b) {
    if (a.degree[b] > 0) continue;
    for (; i < down * across; i += gridDim.x)
      multiply_tile<S, E>(product, tiles, b, valid_rows(a, b), i / across * tile_rows, i % across * tile_columns);
    i -= down * across;
  }
}

const char* multiply(const RelaxedSubsetArguments& a, const Product& product, void* stream) {
  const auto tiles =
      a.batch * ((product.rows + tile_rows - 1) / tile_rows) * ((product.columns + tile_columns - 1) / tile_columns);
  if (tiles == 0) return nullptr;
  const auto blocks = static_cast<unsigned>(tiles < most_blocks ? tiles : most_blocks);
  by_element(a.element,
             [&]<class S, class E>() { launch(product_kernel<S, E>, dim3(blocks), threads, false, stream, a, product); });
  return launch_error();
}

Factor as_it_stands(const void* data, std::int64_t rows, std::int64_t columns) { return {data, rows * columns, columns, 1}; }
Factor transposed(const void* data, std::int64_t rows, std::int64_t columns) { return {data, rows * columns, 1, columns}; }

}  // namespace

const char* relaxed_subset_values_cuda(const RelaxedSubsetArguments& a, void* stream) {
  return multiply(a,
                  {as_it_stands(a.weights, a.rounds, a.length), as_it_stands(a.x, a.length, a.width), a.values, a.rounds,
                   a.width, a.length, RowsOfX::inner},
                  stream);
}

const char* relaxed_subset_x_gradient_cuda(const RelaxedSubsetArguments& a, void* stream) {
  return multiply(a,
                  {transposed(a.weights, a.rounds, a.length), as_it_stands(a.values_gradient, a.rounds, a.width),
                   a.x_gradient, a.length, a.width, a.rounds, RowsOfX::rows},
                  stream);
}

const char* relaxed_subset_weight_gradient_cuda(const RelaxedSubsetArguments& a, void* stream) {
  return multiply(a,
                  {as_it_stands(a.values_gradient, a.rounds, a.width), transposed(a.x, a.length, a.width), a.weight_gradient,
                   a.rounds, a.length, a.width, RowsOfX::columns},
                  stream);
}

}  // namespace transpool

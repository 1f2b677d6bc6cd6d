#include "operators/pooling/soft_topk.cuh"

#include <cooperative_groups.h>

namespace transpool {
namespace {

namespace cg = cooperative_groups;

constexpr int threads = 256;
constexpr int tile = 64;  // targets of a tile, four by four a thread
constexpr int each = 4;
constexpr int side = tile / each;
constexpr int half_chunk = chunk / 2;
constexpr int splits = 8;  // blocks of a cluster that share the rows of a tile

/// Tiles count from the last target, so that the rows past the top, which share few targets, stand in one tile.
__device__ int first_of_tile(const SoftTopkArguments& a, int number) { return targets_of(a) - tile * (number + 1); }

/// The plan of half a chunk of rows, whose weights lie in `band`, and one tile of targets.
__device__ void fill_plan(const SoftTopkArguments& a, std::int64_t b, int first_row, int rows, const int2& band,
                          int first_target, double (&plan)[half_chunk][tile]) {
  constexpr int count = half_chunk * tile / threads;
  const int column = static_cast<int>(threadIdx.x) % tile, target = first_target + column;
  const bool inside = target >= band.x && target < band.y;
  const double potential = inside ? a.potentials[b * a.targets + target] : 0;
  const double height = height_of(a, target);
  const int first = static_cast<int>(threadIdx.x) / tile;
  double share[count];
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const int row = first + i * (threads / tile);
    share[i] = inside && row < rows ? row_of(a, b, first_row + row).log_share(height, potential) : -1.7e308;
  }
#pragma unroll
  for (int i = 0; i < count; ++i) plan[first + i * (threads / tile)][column] = share[i] > invisible ? exp(share[i]) : 0;
}

/// Couplings of the targets by the rows they share, plan^T plan: one pair of tiles a cluster, whose blocks take turns with
/// the chunks of rows that have weight in both.
__global__ void __cluster_dims__(splits, 1, 1) __launch_bounds__(threads) coupling_kernel(SoftTopkArguments a, bool flow) {
  __shared__ double left[half_chunk][tile], right[half_chunk][tile];
  auto cluster = cg::this_cluster();
  const int split = static_cast<int>(cluster.block_rank());
  const auto b = static_cast<std::int64_t>(blockIdx.y);
  if (a.converged[b] && !flow) return;
  int second = static_cast<int>(blockIdx.x) / splits, first = 0;
  while (second > first) second -= ++first;
  const int row_target = first_of_tile(a, first), column_target = first_of_tile(a, second);
  const int x = static_cast<int>(threadIdx.x) % side, y = static_cast<int>(threadIdx.x) / side;
  const int valid = valid_rows(a, b);
  unsigned shared = 0;
  const auto* bands = reinterpret_cast<const int2*>(a.bands) + b * chunks_of(a);
  const auto meets = [&](const int2& band, int target) { return band.x < target + tile && band.y > target; };
  double sum[each][each] = {};
  // A warp looks at as many bands at a time as it has lanes, so that none waits for one alone.
  for (int at = split; at * chunk < valid; at += splits) {
    if ((at - split) / splits % lanes == 0) {
      const int own = at + splits * static_cast<int>(threadIdx.x % lanes);
      const bool both = own * chunk < valid && meets(bands[own], row_target) && meets(bands[own], column_target);
      shared = __ballot_sync(every_lane, both);
    }
    if (!(shared >> ((at - split) / splits % lanes) & 1)) continue;
    const int2 band = bands[at];
    const bool idle = row_target + (y + 1) * each <= band.x || row_target + y * each >= band.y;
    for (int row = at * chunk; row < min((at + 1) * chunk, valid); row += half_chunk) {
      const int rows = min(half_chunk, valid - row);
      __syncthreads();
      fill_plan(a, b, row, rows, band, row_target, left);
      if (first != second) fill_plan(a, b, row, rows, band, column_target, right);
      __syncthreads();
      const auto& other = first == second ? left : right;
      for (int r = 0; r < rows && !idle; ++r) {
        double of_rows[each], of_columns[each];
#pragma unroll
        for (int i = 0; i < each; ++i) {
          of_rows[i] = left[r][y * each + i];
          of_columns[i] = other[r][x * each + i];
        }
#pragma unroll
        for (int i = 0; i < each; ++i)
#pragma unroll
          for (int j = 0; j < each; ++j) sum[i][j] += of_rows[i] * of_columns[j];
      }
    }
  }
  __syncthreads();
  double* mine = &left[0][0];  // both arrays: a whole tile, its halves one after the other
  double* others = &right[0][0];
#pragma unroll
  for (int i = 0; i < each; ++i)
#pragma unroll
    for (int j = 0; j < each; ++j) {
      const int row = y * each + i;
      (row < half_chunk ? mine : others)[row % half_chunk * tile + x * each + j] = sum[i][j];
    }
  cluster.sync();
  for (int i = static_cast<int>(threadIdx.x); i < tile / splits * tile; i += threads) {
    const int row = split * (tile / splits) + i / tile, column = i % tile;
    double total = 0;
    for (int from = 0; from < splits; ++from)
      total += cluster.map_shared_rank(row < half_chunk ? mine : others, from)[row % half_chunk * tile + column];
    const int j = row_target + row, m = column_target + column;
    if (j < 0 || m < 0) continue;
    double* system = a.system + b * (a.targets + 1) * a.targets;
    system[j * a.targets + m] = total;
    system[m * a.targets + j] = total;
  }
  cluster.sync();
}

/// The Laplacian of the couplings, made regular where potentials are free, and the right-hand side as one more row.
__global__ void __launch_bounds__(threads) system_kernel(SoftTopkArguments a, bool flow) {
  const auto b = static_cast<std::int64_t>(blockIdx.y), j = static_cast<std::int64_t>(blockIdx.x);
  if (a.converged[b] && !flow) return;
  double* row = a.system + (b * (a.targets + 1) + j) * a.targets;
  const double* mass = a.mass + b * a.targets;
  if (j == a.targets) {
    for (auto m = static_cast<std::int64_t>(threadIdx.x); m < a.targets; m += threads)
      row[m] = flow ? a.sums[b * a.targets + m] : mass[m] - a.sums[b * a.targets + m];
    return;
  }
  double sum = 0;
  for (auto m = static_cast<std::int64_t>(threadIdx.x); m < a.targets; m += threads)
    if (m != j) sum += row[m];
  sum = sum_over_block<threads>(sum);
  const bool active = mass[j] > 0;
  const double constant = 1 / static_cast<double>(a.targets);
  for (auto m = static_cast<std::int64_t>(threadIdx.x); m < a.targets; m += threads) {
    const double shared = active && mass[m] > 0 ? constant : 0;
    row[m] = m == j ? shared + sum + (active ? 0 : 1) + a.ridge : shared - row[m];
  }
}

constexpr int panel = 32;
constexpr int cluster_blocks = 8;

/// One warp: the Cholesky factor of a diagonal block, a row a lane, and the reciprocals of its diagonal.
__device__ void factor_diagonal(double (&block)[panel][panel + 1], double (&inverse)[panel], double least) {
  const int lane = static_cast<int>(threadIdx.x);
  double row[panel];
#pragma unroll
  for (int c = 0; c < panel; ++c) row[c] = block[lane][c];
#pragma unroll
  for (int c = 0; c < panel; ++c) {
    const double pivot = fmax(__shfl_sync(every_lane, row[c], c), least);
    const double scale = rsqrt(pivot);
    row[c] *= scale;
    if (lane == c) {
      row[c] = pivot * scale;
      inverse[c] = scale;
    }
#pragma unroll
    for (int t = c + 1; t < panel; ++t) row[t] -= row[c] * __shfl_sync(every_lane, row[c], t);
  }
#pragma unroll
  for (int c = 0; c < panel; ++c) block[lane][c] = row[c];
}

struct SolveMemory {
  double diagonal[panel][panel + 1];
  double inverse[panel];
  double left[tile][panel + 1], right[tile][panel + 1];
};

/// Rows under the panel: L21 = A21 L11^-T, one row a thread.
__device__ void solve_rows(double* system, int targets, int from, int width, SolveMemory& memory, int thread, int count) {
  for (int row = from + width + thread; row <= targets; row += count) {
    double* own = system + static_cast<std::int64_t>(row) * targets + from;
    double value[panel];
#pragma unroll
    for (int c = 0; c < panel; ++c) value[c] = c < width ? own[c] : 0;
#pragma unroll
    for (int c = 0; c < panel; ++c) {
      double left = value[c];
#pragma unroll
      for (int t = 0; t < c; ++t) left -= value[t] * memory.diagonal[c][t];
      value[c] = left * memory.inverse[c];
    }
#pragma unroll
    for (int c = 0; c < panel; ++c)
      if (c < width) own[c] = value[c];
  }
}

using Panel = double[tile][panel + 1];

/// Two tiles of rows of a panel into shared memory, all read before the first is written.
__device__ void load_rows(const double* system, int targets, int top, int from, int width, Panel& left, Panel& right,
                          int before) {
  constexpr int count = tile * panel / threads;
  const int c = static_cast<int>(threadIdx.x) % panel, first = static_cast<int>(threadIdx.x) / panel;
  const auto value = [&](int at) {
    return at <= targets && c < width ? system[static_cast<std::int64_t>(at) * targets + from + c] : 0.0;
  };
  double of_left[count], of_right[count];
#pragma unroll
  for (int i = 0; i < count; ++i) {
    of_left[i] = value(top + first + i * (threads / panel));
    of_right[i] = value(before + first + i * (threads / panel));
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < count; ++i) {
    left[first + i * (threads / panel)][c] = of_left[i];
    right[first + i * (threads / panel)][c] = of_right[i];
  }
  __syncthreads();
}

/// A22 -= L21 L21^T, tile by tile under the diagonal.
__device__ void update_trailing(double* system, int targets, int from, int width, SolveMemory& memory, int block,
                                int blocks) {
  const int start = from + width, tiles = (targets + 1 - start + tile - 1) / tile;
  const int x = static_cast<int>(threadIdx.x) % side, y = static_cast<int>(threadIdx.x) / side;
  for (int pair = block; pair < tiles * (tiles + 1) / 2; pair += blocks) {
    int second = pair, first = 0;
    while (second > first) second -= ++first;
    const int top = start + first * tile, before = start + second * tile;
    load_rows(system, targets, top, from, width, memory.left, memory.right, before);
    double sum[each][each] = {};
#pragma unroll 4
    for (int c = 0; c < panel; ++c) {
      double of_rows[each], of_columns[each];
#pragma unroll
      for (int i = 0; i < each; ++i) {
        of_rows[i] = memory.left[y + i * side][c];
        of_columns[i] = memory.right[x + i * side][c];
      }
#pragma unroll
      for (int i = 0; i < each; ++i)
#pragma unroll
        for (int j = 0; j < each; ++j) sum[i][j] += of_rows[i] * of_columns[j];
    }
    // All are read before the first is written: what may be the same address would wait otherwise.
    double old[each][each];
    const auto at = [&](int i, int j) -> double* {
      const int row = top + y + i * side, column = before + x + j * side;
      const bool inside = row <= targets && column < targets && column <= row;
      return inside ? system + static_cast<std::int64_t>(row) * targets + column : nullptr;
    };
#pragma unroll
    for (int i = 0; i < each; ++i)
#pragma unroll
      for (int j = 0; j < each; ++j) old[i][j] = at(i, j) ? *at(i, j) : 0;
#pragma unroll
    for (int i = 0; i < each; ++i)
#pragma unroll
      for (int j = 0; j < each; ++j)
        if (at(i, j)) *at(i, j) = old[i][j] - sum[i][j];
  }
}

/// L^T answer = y by one block, from the last panel to the first; y is the last row of the system.
__device__ void solve_backward(const double* system, double* answer, int targets, SolveMemory& memory) {
  for (int j = static_cast<int>(threadIdx.x); j < targets; j += threads)
    answer[j] = system[static_cast<std::int64_t>(targets) * targets + j];
  for (int from = (targets - 1) / panel * panel; from >= 0; from -= panel) {
    const int width = min(panel, targets - from);
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < panel * panel; i += threads) {
      const int row = i / panel, c = i % panel;
      memory.diagonal[row][c] =
          row < width && c < width ? system[static_cast<std::int64_t>(from + row) * targets + from + c] : 0;
    }
    __syncthreads();
    if (threadIdx.x < lanes) {
      const int lane = static_cast<int>(threadIdx.x);
      const double inverse = lane < width ? 1 / memory.diagonal[lane][lane] : 0;
      double own = lane < width ? answer[from + lane] : 0;
      for (int c = width - 1; c >= 0; --c) {
        const double value = __shfl_sync(every_lane, own * inverse, c);
        if (lane < c) own -= memory.diagonal[c][lane] * value;
      }
      memory.inverse[lane] = own * inverse;
      if (lane < width) answer[from + lane] = own * inverse;
    }
    __syncthreads();
    for (int j = static_cast<int>(threadIdx.x); j < from; j += threads) {
      double sum = 0;
#pragma unroll 8
      for (int row = 0; row < width; ++row)
        sum += system[static_cast<std::int64_t>(from + row) * targets + j] * memory.inverse[row];
      answer[j] -= sum;
    }
  }
}

/// Cholesky's factorisation by one cluster a system, panel by panel; the right-hand side goes along as its last row.
__global__ void __cluster_dims__(cluster_blocks, 1, 1) __launch_bounds__(threads, 2)
    solve_kernel(SoftTopkArguments a, bool flow) {
  __shared__ SolveMemory memory;
  auto cluster = cg::this_cluster();
  const int block = static_cast<int>(cluster.block_rank()), targets = targets_of(a);
  const auto b = static_cast<std::int64_t>(blockIdx.x) / cluster_blocks;
  if (a.converged[b] && !flow) return;
  double* system = a.system + b * (a.targets + 1) * a.targets;
  for (int from = 0; from < targets; from += panel) {
    const int width = min(panel, targets - from);
    for (int i = static_cast<int>(threadIdx.x); i < panel * panel; i += threads) {
      const int row = i / panel, c = i % panel;
      const bool inside = row < width && c < width;
      memory.diagonal[row][c] =
          inside ? system[static_cast<std::int64_t>(from + row) * targets + from + c] : (row == c ? 1.0 : 0.0);
    }
    __syncthreads();
    if (threadIdx.x < lanes) factor_diagonal(memory.diagonal, memory.inverse, a.ridge / 16);
    __syncthreads();
    solve_rows(system, targets, from, width, memory, block * threads + static_cast<int>(threadIdx.x),
               cluster_blocks * threads);
    cluster.sync();
    // Every block has read the diagonal's block by now.
    if (block == 0)
      for (int i = static_cast<int>(threadIdx.x); i < panel * panel; i += threads) {
        const int row = i / panel, c = i % panel;
        if (row < width && c <= row)
          system[static_cast<std::int64_t>(from + row) * targets + from + c] = memory.diagonal[row][c];
      }
    update_trailing(system, targets, from, width, memory, block, cluster_blocks);
    cluster.sync();
  }
  if (block == 0) solve_backward(system, a.answer + b * a.targets, targets, memory);
}

}  // namespace

const char* soft_topk_solve_cuda(const SoftTopkArguments& a, bool flow, void* stream) {
  const auto batch = static_cast<unsigned>(a.batch);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const auto tiles = blocks_for(a.targets, tile);
  coupling_kernel<<<dim3(tiles * (tiles + 1) / 2 * splits, batch), threads, 0, cuda_stream>>>(a, flow);
  system_kernel<<<dim3(static_cast<unsigned>(a.targets + 1), batch), threads, 0, cuda_stream>>>(a, flow);
  solve_kernel<<<batch * cluster_blocks, threads, 0, cuda_stream>>>(a, flow);
  return launch_error();
}

}  // namespace transpool

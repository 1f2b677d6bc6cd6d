#include "operators/attention/lsh_cuda.h"

#include <cuda_runtime.h>

namespace transpool {
namespace {

constexpr unsigned all_lanes = 0xffffffffu;
constexpr int sort_warps = 16;

/// Counters of a warp for each bucket and for the rows that are not valid.
std::int64_t sort_bytes(std::int64_t buckets) { return (buckets + 1) * sort_warps * static_cast<std::int64_t>(sizeof(int)); }

/// One block a head in one round: a stable counting sort. Each warp has a run of rows, so that counters by bucket, then by
/// warp, then by row give the place.
__global__ void __launch_bounds__(sort_warps * 32) sort_kernel(LshArguments a) {
  extern __shared__ int counters[];  // (buckets + 1, warps)
  __shared__ int totals[sort_warps * 32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, threads = sort_warps * 32;
  const int round = blockIdx.x % a.rounds;
  const std::int64_t head = blockIdx.x / a.rounds;
  const int rows = static_cast<int>(a.rows), buckets = static_cast<int>(a.first_buckets * a.second_buckets);
  const int length = a.lengths == nullptr ? rows : static_cast<int>(a.lengths[head / a.heads]);
  const int cells = (buckets + 1) * sort_warps;
  const std::int32_t* hashes = a.hashes == nullptr ? nullptr : a.hashes + static_cast<std::int64_t>(blockIdx.x) * rows;
  const int run = (rows + sort_warps * 32 - 1) / (sort_warps * 32) * 32;
  const int begin = warp * run, end = begin + run < rows ? begin + run : rows;
  const auto bucket_of = [&](int row) {
    if (row >= rows) return -1;
    return row >= length ? buckets : hashes == nullptr ? 0 : hashes[row];
  };
  for (int i = threadIdx.x; i < cells; i += threads) counters[i] = 0;
  __syncthreads();
  for (int first = begin; first < end; first += 32) {
    const int bucket = bucket_of(first + lane);
    const unsigned same = __match_any_sync(all_lanes, bucket);
    if (bucket >= 0 && lane == __ffs(same) - 1) counters[bucket * sort_warps + warp] += __popc(same);
    __syncwarp();
  }
  __syncthreads();
  // Exclusive sums over all cells: each thread has a run of them.
  const int share = (cells + threads - 1) / threads;
  const int from = threadIdx.x * share, to = from + share < cells ? from + share : cells;
  int sum = 0;
  for (int i = from; i < to; ++i) sum += counters[i];
  totals[threadIdx.x] = sum;
  __syncthreads();
  if (warp == 0) {
    int before = 0;
    for (int first = 0; first < threads; first += 32) {
      const int own = totals[first + lane];
      int running = own;
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(all_lanes, running, step);
        if (lane >= step) running += other;
      }
      totals[first + lane] = before + running - own;
      before += __shfl_sync(all_lanes, running, 31);
    }
  }
  __syncthreads();
  sum = totals[threadIdx.x];
  for (int i = from; i < to; ++i) {
    const int own = counters[i];
    counters[i] = sum;
    sum += own;
  }
  __syncthreads();
  for (int first = begin; first < end; first += 32) {
    const int row = first + lane, bucket = bucket_of(row);
    const unsigned same = __match_any_sync(all_lanes, bucket);
    const int rank = __popc(same & ((1u << lane) - 1));
    const int start = bucket >= 0 ? counters[bucket * sort_warps + warp] : 0;
    __syncwarp();
    if (bucket >= 0) {
      if (rank == 0) counters[bucket * sort_warps + warp] = start + __popc(same);
      a.order[static_cast<std::int64_t>(blockIdx.x) * rows + start + rank] = row;
      a.chunks[(head * rows + row) * lsh_most_rounds + round] =
          static_cast<std::uint16_t>((start + rank) / static_cast<int>(a.chunk));
      if (round == 0)
        for (int r = static_cast<int>(a.rounds); r < lsh_most_rounds; ++r)
          a.chunks[(head * rows + row) * lsh_most_rounds + r] = 0;
    }
    __syncwarp();
  }
}

const char* last_error() {
  const auto error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

bool lsh_kernels_take(std::int64_t rows, std::int64_t width, std::int64_t rounds, std::int64_t chunk, std::int64_t buckets) {
  return lsh_hash_takes(width) && (chunk == 32 || chunk == 64) && rounds <= lsh_most_rounds && rows >= 1 &&
         (rows + chunk - 1) / chunk < 32768 && sort_bytes(buckets) <= 160 * 1024;
}

const char* lsh_sort_cuda(const LshArguments& a, void* stream) {
  const int bytes = static_cast<int>(sort_bytes(a.first_buckets * a.second_buckets));
  if (const auto error = cudaFuncSetAttribute(sort_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
      error != cudaSuccess)
    return cudaGetErrorString(error);
  sort_kernel<<<static_cast<unsigned>(a.batch * a.heads * a.rounds), sort_warps * 32, bytes,
                static_cast<cudaStream_t>(stream)>>>(a);
  return last_error();
}

}  // namespace transpool

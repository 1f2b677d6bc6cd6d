#include "operators/attention/lsh_attention.cuh"

namespace transpool {
namespace {

/// Chunks of one block, which share what they read.
constexpr int forward_chunks = 2;

/// Blocks at once of a multiprocessor, which leaves 128 registers a thread; wide heads need more of them.
template <int E, int M>
constexpr int forward_blocks = E <= 64 ? 256 / (forward_chunks * M) : 1;

template <class T, int E, int M>
constexpr int forward_rows = (forward_chunks + 1) * M;

template <class T, int E, int M>
constexpr int forward_bytes = forward_rows<T, E, M> * 2 * tile_stride<E>* static_cast<int>(sizeof(T)) +
                              static_cast<int>(sizeof(Rows<forward_rows<T, E, M>>));

/// 16 rows of a chunk: their logits stay in registers. The values may still be on their way.
template <class T, int E, int M, int W, int N>
__device__ void attend_rows(const LshArguments& a, const Rows<N>& rows, const T* keys, const T* values, std::int64_t head,
                            int round) {
  const int lane = threadIdx.x % 32, t = lane % 4, own = M + threadIdx.x / 32 * 16;
  const int before = own / M * M - M;  // the first row that it sees
  const Earlier<W> earlier(round);
  const int query[2] = {own + lane / 4, own + lane / 4 + 8};
  const int query_place[2] = {rows.place[query[0]], rows.place[query[1]]};
  unsigned query_chunks[2][W > 0 ? W : 1];
#pragma unroll
  for (int w = 0; w < W; ++w) query_chunks[0][w] = rows.chunks[w][query[0]], query_chunks[1][w] = rows.chunks[w][query[1]];
  unsigned left[E / 16][4];
  load_left_rows<T, E>(left, keys, own);
  float logits[M / 4][4];
  float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int tile = 0; tile < 2 * M; tile += 16) {
    float products[2][4];
    multiply_rows<T, E>(products, left, keys, before + tile);
    const bool diagonal = before + tile == own;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Columns<W, N> key(rows, before + tile + i * 8 + 2 * t, a.causal);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float logit = fmaf(products[i][j], key.factor_of(j % 2), key.barrier_of(j % 2));
        if (earlier.show(query_chunks[j / 2], key.chunks[j % 2])) logit = -INFINITY;
        if (a.causal && key.place_of(j % 2) > query_place[j / 2]) logit = -INFINITY;
        if (diagonal && i * 8 + 2 * t + j % 2 == lane / 4 + j / 2 * 8) logit = round == 0 ? self_logit : -INFINITY;
        logits[tile / 8 + i][j] = logit;
        top[j / 2] = fmaxf(top[j / 2], logit);
      }
    }
  }
  wait_for_tiles<0>();
  __syncthreads();
  float sum[2] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    top[i] = quad_max(top[i]);
    if (top[i] == -INFINITY) top[i] = 0;
  }
  float out[E / 8][4] = {};
#pragma unroll
  for (int tile = 0; tile < 2 * M; tile += 16) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float& weight = logits[tile / 8 + i][j];
        weight = fast_exp2(weight - top[j / 2]);
        sum[j / 2] += weight;
      }
    add_weighted<T, E>(out, logits[tile / 8], logits[tile / 8 + 1], values, before + tile);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sum[i] = quad_sum(sum[i]);
    if (!rows.valid(query[i])) sum[i] = 0;
  }
  const std::int64_t base = (head * a.rounds + round) * a.rows;
  const float shares[2] = {sum[0] > 0 ? 1 / sum[0] : 0.0f, sum[1] > 0 ? 1 / sum[1] : 0.0f};
  store_rows<T, E>(out, rows.place + own, static_cast<T*>(a.round_values) + base * E, shares);
#pragma unroll
  for (int i = 0; i < 2; ++i)
    if (t == 0 && query_place[i] >= 0)
      a.round_normalisers[base + query_place[i]] = sum[i] > 0 ? top[i] + __log2f(sum[i]) : -INFINITY;
}

/// One warp 16 rows of the block's chunks.
template <class T, int E, int M>
__global__ void __launch_bounds__(forward_chunks* M * 2, (forward_blocks<E, M>)) forward_kernel(LshArguments a) {
  extern __shared__ __align__(16) unsigned char memory[];
  constexpr int count = forward_rows<T, E, M>;
  T* const keys = reinterpret_cast<T*>(memory);
  T* const values = keys + count * tile_stride<E>;
  auto& rows = *reinterpret_cast<Rows<count>*>(values + count * tile_stride<E>);
  const int round = blockIdx.y;
  const std::int64_t head = blockIdx.z;
  load_rows(rows, (static_cast<int>(blockIdx.x) * forward_chunks - 1) * M, a, head, round);
  __syncthreads();
  load_tile<T, E>(keys, rows, 0, count, head_rows<T>(a.q, a, head), a.q.row_stride);
  commit_tiles();
  load_tile<T, E>(values, rows, 0, count, head_rows<T>(a.v, a, head), a.v.row_stride);
  commit_tiles();
  wait_for_tiles<1>();
  __syncthreads();
  set_factors<T, E>(rows, keys);
  __syncthreads();
  if (round == 0) attend_rows<T, E, M, 0>(a, rows, keys, values, head, round);
  else if (round <= 2) attend_rows<T, E, M, 1>(a, rows, keys, values, head, round);
  else if (round <= 4) attend_rows<T, E, M, 2>(a, rows, keys, values, head, round);
  else attend_rows<T, E, M, 4>(a, rows, keys, values, head, round);
}

/// One thread eight columns of a row: the rounds' outputs by their shares of the sum of exponentials.
template <class T>
__global__ void join_rounds_kernel(LshArguments a) {
  const int packs = static_cast<int>(a.width / 8);
  const std::int64_t id = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (id >= a.batch * a.heads * a.rows * packs) return;
  const int pack = static_cast<int>(id % packs);
  const std::int64_t row = id / packs % a.rows, head = id / packs / a.rows;
  const float* normalisers = a.round_normalisers + head * a.rounds * a.rows + row;
  float top = -INFINITY, sum = 0;
  for (int r = 0; r < a.rounds; ++r) top = fmaxf(top, normalisers[r * a.rows]);
  float out[8] = {};
  if (top != -INFINITY)
#pragma unroll 4
    for (int r = 0; r < a.rounds; ++r) {
      const float share = fast_exp2(normalisers[r * a.rows] - top);
      const auto part = static_cast<const Pack<T>*>(a.round_values)[((head * a.rounds + r) * a.rows + row) * packs + pack];
      sum += share;
#pragma unroll
      for (int i = 0; i < 8; ++i) out[i] += share * as_float(part.element[i]);
    }
  Pack<T> result;
#pragma unroll
  for (int i = 0; i < 8; ++i) result.element[i] = static_cast<T>(sum > 0 ? out[i] / sum : 0.0f);
  *pack_of<T>(a.out, a, head, row, pack) = result;
  if (pack == 0) a.normalisers[head * a.rows + row] = sum > 0 ? top + __log2f(sum) : 0.0f;
}

struct Forward {
  const LshArguments& a;
  cudaStream_t stream;

  template <class T, int E, int M>
  const char* run() const {
    constexpr int bytes = forward_bytes<T, E, M>, rows = forward_chunks * M;
    const auto kernel = forward_kernel<T, E, M>;
    if (const auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
        error != cudaSuccess)
      return cudaGetErrorString(error);
    const dim3 grid(static_cast<unsigned>((a.rows + rows - 1) / rows), static_cast<unsigned>(a.rounds),
                    static_cast<unsigned>(a.batch * a.heads));
    kernel<<<grid, rows * 2, bytes, stream>>>(a);
    join_rounds_kernel<T><<<row_blocks(a.batch * a.heads * a.rows * (E / 8)), row_threads, 0, stream>>>(a);
    return last_error();
  }
};

}  // namespace

const char* lsh_forward_cuda(const LshArguments& a, void* stream) {
  return dispatch(a, Forward{a, static_cast<cudaStream_t>(stream)});
}

}  // namespace transpool

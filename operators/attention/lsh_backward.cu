#include "operators/attention/lsh_attention.cuh"

namespace transpool {
namespace {

/// One warp a row: the product of an output row and its gradient.
template <class T>
__global__ void out_products_kernel(LshArguments a) {
  const std::int64_t id = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 4;
  const int part = threadIdx.x % 4, packs = static_cast<int>(a.width / 8);
  float sum = 0;
  if (id < a.batch * a.heads * a.rows)
    for (int pack = part; pack < packs; pack += 4) {
      const auto left = *pack_of<T>(a.out, a, id / a.rows, id % a.rows, pack);
      const auto right = *pack_of<T>(a.out_gradient, a, id / a.rows, id % a.rows, pack);
#pragma unroll
      for (int i = 0; i < 8; ++i) sum = fmaf(as_float(left.element[i]), as_float(right.element[i]), sum);
    }
  sum = quad_sum(sum);
  if (part == 0 && id < a.batch * a.heads * a.rows) a.out_products[id] = sum;
}

/// Of a query in the backward pass: its log-sum-exp in units of log 2, +inf where it is not valid; <out, gradient>.
template <int N>
struct alignas(16) Known {
  float normaliser[N], product[N];
};

/// Chunks of one block, which share what they read.
constexpr int backward_chunks = 1;

template <class T, int E, int M>
constexpr int backward_bytes = (3 * backward_chunks + 4) * M* tile_stride<E>* static_cast<int>(sizeof(T)) +
                               static_cast<int>(sizeof(Rows<(backward_chunks + 2) * M>) +
                                                sizeof(Known<(backward_chunks + 2) * M>));

/// What a block of the backward pass has in shared memory.
template <class T, int E, int M>
struct BackwardTiles {
  static constexpr int chunks = backward_chunks, count = (chunks + 2) * M;
  T* q;         ///< all rows
  T* v;         ///< all but the last M
  T* gradient;  ///< all but the first M
  Rows<count>* rows;
  Known<count>* known;

  __device__ explicit BackwardTiles(unsigned char* memory)
      : q(reinterpret_cast<T*>(memory)),
        v(q + count * tile_stride<E>),
        gradient(v + (count - M) * tile_stride<E>),
        rows(reinterpret_cast<Rows<count>*>(gradient + (count - M) * tile_stride<E>)),
        known(reinterpret_cast<Known<count>*>(rows + 1)) {}
};

/// The gradient of 16 rows as queries, of the keys that they see.
template <class T, int E, int M, int W>
__device__ void gradient_as_query(float (&sum)[E / 8][4], const BackwardTiles<T, E, M>& tiles, bool causal, int round) {
  const auto& rows = *tiles.rows;
  const int lane = threadIdx.x % 32, t = lane % 4, own = M + threadIdx.x / 32 * 16, before = own / M * M - M;
  const Earlier<W> earlier(round);
  float normaliser[2], product[2];
  int place[2];
  unsigned chunks[2][W > 0 ? W : 1];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = own + lane / 4 + i * 8;
    normaliser[i] = tiles.known->normaliser[row], product[i] = tiles.known->product[row], place[i] = rows.place[row];
#pragma unroll
    for (int w = 0; w < W; ++w) chunks[i][w] = rows.chunks[w][row];
  }
  unsigned left[E / 16][4], left_gradient[E / 16][4];
  load_left_rows<T, E>(left, tiles.q, own);
  load_left_rows<T, E>(left_gradient, tiles.gradient, own - M);
#pragma unroll 1
  for (int tile = before; tile < before + 2 * M; tile += 16) {
    float logits[2][4], weights[2][4];
    multiply_rows<T, E>(logits, left, tiles.q, tile);
    multiply_rows<T, E>(weights, left_gradient, tiles.v, tile);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Columns<W, BackwardTiles<T, E, M>::count> key(rows, tile + i * 8 + 2 * t, causal);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float logit = fmaf(logits[i][j], key.factor_of(j % 2), key.barrier_of(j % 2) - normaliser[j / 2]);
        bool counts = !earlier.show(chunks[j / 2], key.chunks[j % 2]);
        if (causal) counts = counts && key.place_of(j % 2) <= place[j / 2];
        const float change = fast_exp2(logit) * (weights[i][j] - product[j / 2]) * (key.factor_of(j % 2) * (1 / log2_e));
        weights[i][j] = counts ? change : 0.0f;
        // A row's logit for itself is a constant.
        if (tile == own && i * 8 + 2 * t + j % 2 == lane / 4 + j / 2 * 8) weights[i][j] = 0;
      }
    }
    add_weighted<T, E>(sum, weights[0], weights[1], tiles.q, tile);
  }
}

/// The gradients of 16 rows as keys of length one and as values, of the queries that see them.
template <class T, int E, int M, int W>
__device__ void gradient_as_key(float (&sum)[E / 8][4], float (&of_value)[E / 8][4], const BackwardTiles<T, E, M>& tiles,
                                bool causal, int round) {
  constexpr int count = BackwardTiles<T, E, M>::count;
  const auto& rows = *tiles.rows;
  const int lane = threadIdx.x % 32, t = lane % 4, own = M + threadIdx.x / 32 * 16, first = own / M * M;
  const Earlier<W> earlier(round);
  float factor[2], barrier[2];
  int place[2];
  unsigned chunks[2][W > 0 ? W : 1];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = own + lane / 4 + i * 8;
    factor[i] = rows.factor[row], barrier[i] = rows.barrier[row], place[i] = rows.place[row];
#pragma unroll
    for (int w = 0; w < W; ++w) chunks[i][w] = rows.chunks[w][row];
  }
  unsigned left[E / 16][4], left_value[E / 16][4];
  load_left_rows<T, E>(left, tiles.q, own);
  load_left_rows<T, E>(left_value, tiles.v, own);
#pragma unroll 1
  for (int tile = first; tile < first + 2 * M; tile += 16) {
    float weights[2][4], changes[2][4];
    multiply_rows<T, E>(weights, left, tiles.q, tile);
    multiply_rows<T, E>(changes, left_value, tiles.gradient, tile - M);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = tile + i * 8 + 2 * t;
      const Columns<W, count> query(rows, row, causal);
      const auto normaliser = *reinterpret_cast<const float2*>(tiles.known->normaliser + row);
      const auto product = *reinterpret_cast<const float2*>(tiles.known->product + row);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float shift = barrier[j / 2] - (j % 2 == 0 ? normaliser.x : normaliser.y);
        float logit = fmaf(weights[i][j], factor[j / 2], shift);
        const bool self = tile == own && i * 8 + 2 * t + j % 2 == lane / 4 + j / 2 * 8;
        if (self) logit = round == 0 ? self_logit + shift : -INFINITY;
        bool counts = !earlier.show(query.chunks[j % 2], chunks[j / 2]);
        if (causal) counts = counts && place[j / 2] <= query.place_of(j % 2);
        weights[i][j] = counts ? fast_exp2(logit) : 0.0f;
        changes[i][j] = self ? 0.0f : weights[i][j] * (changes[i][j] - (j % 2 == 0 ? product.x : product.y));
      }
    }
    add_weighted<T, E>(of_value, weights[0], weights[1], tiles.gradient, tile - M);
    add_weighted<T, E>(sum, changes[0], changes[1], tiles.q, tile);
  }
}

/// Adds to the gradient of 16 rows what it is by their gradient as keys, through the division by the norm: what is left of
/// that one is orthogonal to the row.
template <class T, int E, int M>
__device__ void add_through_norm(float (&sum)[E / 8][4], const float (&as_key)[E / 8][4],
                                 const BackwardTiles<T, E, M>& tiles) {
  const int lane = threadIdx.x % 32, own = M + threadIdx.x / 32 * 16 + lane / 4;
  const auto element = [&](int n, int j) {
    return as_float(tiles.q[(own + j / 2 * 8) * tile_stride<E> + n * 8 + lane % 4 * 2 + j % 2]);
  };
  float along[2] = {}, squared[2] = {};
#pragma unroll
  for (int n = 0; n < E / 8; ++n)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float x = element(n, j);
      along[j / 2] = fmaf(as_key[n][j], x, along[j / 2]);
      squared[j / 2] = fmaf(x, x, squared[j / 2]);
    }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    along[i] = quad_sum(along[i]);
    squared[i] = quad_sum(squared[i]);
    along[i] = squared[i] > 1e-24f ? along[i] / squared[i] : 0.0f;
  }
#pragma unroll
  for (int n = 0; n < E / 8; ++n)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      sum[n][j] += tiles.rows->factor[own + j / 2 * 8] / log2_e * (as_key[n][j] - along[j / 2] * element(n, j));
}

template <class T, int E, int M, int W>
__device__ void gradients_of_rows(const LshArguments& a, const BackwardTiles<T, E, M>& tiles, std::int64_t head, int round) {
  float as_query[E / 8][4] = {}, as_key[E / 8][4] = {}, of_value[E / 8][4] = {};
  gradient_as_key<T, E, M, W>(as_key, of_value, tiles, a.causal, round);
  const int own = M + threadIdx.x / 32 * 16;
  const std::int64_t base = (head * a.rounds + round) * a.rows * E;
  store_rows<T, E>(of_value, tiles.rows->place + own, static_cast<T*>(a.round_values) + base, 1, 1);
  gradient_as_query<T, E, M, W>(as_query, tiles, a.causal, round);
  add_through_norm<T, E, M>(as_query, as_key, tiles);
  store_rows<T, E>(as_query, tiles.rows->place + own, static_cast<T*>(a.round_q_gradients) + base, 1, 1);
}

/// One block all but the first and the last of its chunks: their rows as queries of the chunk before and their own, and as
/// keys of their own and the chunk after. One warp 16 of these rows.
template <class T, int E, int M>
__global__ void __launch_bounds__(backward_chunks* M * 2) backward_kernel(LshArguments a) {
  extern __shared__ __align__(16) unsigned char memory[];
  const BackwardTiles<T, E, M> tiles(memory);
  constexpr int count = BackwardTiles<T, E, M>::count;
  const int round = blockIdx.y;
  const std::int64_t head = blockIdx.z;
  load_rows(*tiles.rows, (static_cast<int>(blockIdx.x) * tiles.chunks - 1) * M, a, head, round);
  __syncthreads();
  load_tile<T, E>(tiles.q, *tiles.rows, 0, count, head_rows<T>(a.q, a, head), a.q.row_stride);
  load_tile<T, E>(tiles.v, *tiles.rows, 0, count - M, head_rows<T>(a.v, a, head), a.v.row_stride);
  load_tile<T, E>(tiles.gradient, *tiles.rows, M, count - M, head_rows<T>(a.out_gradient, a, head),
                  a.out_gradient.row_stride);
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const std::int64_t row = head * a.rows + tiles.rows->place[i];
    tiles.known->normaliser[i] = tiles.rows->valid(i) ? a.normalisers[row] : INFINITY;
    tiles.known->product[i] = tiles.rows->valid(i) ? a.out_products[row] : 0.0f;
  }
  wait_for_tiles();
  __syncthreads();
  set_factors<T, E>(*tiles.rows, tiles.q);
  __syncthreads();
  if (round == 0) gradients_of_rows<T, E, M, 0>(a, tiles, head, round);
  else if (round <= 2) gradients_of_rows<T, E, M, 1>(a, tiles, head, round);
  else if (round <= 4) gradients_of_rows<T, E, M, 2>(a, tiles, head, round);
  else gradients_of_rows<T, E, M, 4>(a, tiles, head, round);
}

/// One thread eight columns of a row of both gradients: the sum over the rounds.
template <class T>
__global__ void add_rounds_kernel(LshArguments a) {
  const int packs = static_cast<int>(a.width / 8);
  const std::int64_t id = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (id >= a.batch * a.heads * a.rows * packs) return;
  const int pack = static_cast<int>(id % packs);
  const std::int64_t row = id / packs % a.rows, head = id / packs / a.rows;
  float q[8] = {}, v[8] = {};
  for (int r = 0; r < a.rounds; ++r) {
    const std::int64_t from = ((head * a.rounds + r) * a.rows + row) * packs + pack;
    const auto q_part = static_cast<const Pack<T>*>(a.round_q_gradients)[from];
    const auto v_part = static_cast<const Pack<T>*>(a.round_values)[from];
#pragma unroll
    for (int i = 0; i < 8; ++i) q[i] += as_float(q_part.element[i]), v[i] += as_float(v_part.element[i]);
  }
  Pack<T> q_sum, v_sum;
#pragma unroll
  for (int i = 0; i < 8; ++i) q_sum.element[i] = static_cast<T>(q[i]), v_sum.element[i] = static_cast<T>(v[i]);
  *pack_of<T>(a.q_gradient, a, head, row, pack) = q_sum;
  *pack_of<T>(a.v_gradient, a, head, row, pack) = v_sum;
}

struct Backward {
  const LshArguments& a;
  cudaStream_t stream;

  template <class T, int E, int M>
  const char* run() const {
    constexpr int bytes = backward_bytes<T, E, M>, rows = backward_chunks * M;
    const auto kernel = backward_kernel<T, E, M>;
    if (const auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
        error != cudaSuccess)
      return cudaGetErrorString(error);
    const dim3 grid(static_cast<unsigned>((a.rows + rows - 1) / rows), static_cast<unsigned>(a.rounds),
                    static_cast<unsigned>(a.batch * a.heads));
    const auto all = a.batch * a.heads * a.rows;
    out_products_kernel<T><<<row_blocks(all * 4), row_threads, 0, stream>>>(a);
    kernel<<<grid, rows * 2, bytes, stream>>>(a);
    add_rounds_kernel<T><<<row_blocks(all * (E / 8)), row_threads, 0, stream>>>(a);
    return last_error();
  }
};

}  // namespace

const char* lsh_backward_cuda(const LshArguments& a, void* stream) {
  return dispatch(a, Backward{a, static_cast<cudaStream_t>(stream)});
}

}  // namespace transpool

#include "operators/attention/lsh_attention.cuh"

namespace transpool {
namespace {

/// Four threads a row: the product of an output row and its gradient.
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

/// 16 by 16 as a left factor, of a tile that holds its transpose from (row, column) on.
template <int S, class T>
__device__ void load_left_transposed(unsigned (&r)[4], const T* tile, int row, int column) {
  const int lane = threadIdx.x % 32;
  load_transposed(r, tile + (row + lane / 16 * 8 + lane % 8) * tile_stride<S> + column + lane / 8 % 2 * 8);
}

template <class T, int E, int M>
constexpr int run_bytes = (5 * M * tile_stride<E> + 2 * M * tile_stride<M>)*static_cast<int>(sizeof(T)) +
                          static_cast<int>(2 * sizeof(Rows<M>) + sizeof(Known<M>));

/// What a block of the backward pass has in shared memory: two neighbouring chunks, in turns in either slot.
template <class T, int E, int M>
struct RunTiles {
  static constexpr int tile = M * tile_stride<E>;
  unsigned char* memory;

  __device__ T* q(int slot) const { return reinterpret_cast<T*>(memory) + slot * tile; }
  __device__ T* v(int slot) const { return q(2 + slot); }
  __device__ T* gradient() const { return q(4); }  ///< of the later chunk
  /// (2 M keys, M queries): the gradients of the logits, by the factors of the keys.
  __device__ T* changes() const { return q(5); }
  __device__ Rows<M>& rows(int slot) const { return reinterpret_cast<Rows<M>*>(changes() + 2 * M * tile_stride<M>)[slot]; }
  __device__ Known<M>& known() const { return *reinterpret_cast<Known<M>*>(&rows(0) + 2); }
};

template <class T, int E, int M>
__device__ void load_chunk(const LshArguments& a, const RunTiles<T, E, M>& tiles, int chunk, bool queries, std::int64_t head,
                           int round) {
  const int slot = chunk & 1;
  auto& rows = tiles.rows(slot);
  load_rows(rows, chunk * M, a, head, round);
  __syncthreads();
  load_tile<T, E>(tiles.q(slot), rows, 0, M, head_rows<T>(a.q, a, head), a.q.row_stride);
  load_tile<T, E>(tiles.v(slot), rows, 0, M, head_rows<T>(a.v, a, head), a.v.row_stride);
  if (queries) {
    load_tile<T, E>(tiles.gradient(), rows, 0, M, head_rows<T>(a.out_gradient, a, head), a.out_gradient.row_stride);
    for (int i = threadIdx.x; i < M; i += blockDim.x) {
      const std::int64_t row = head * a.rows + rows.place[i];
      tiles.known().normaliser[i] = rows.valid(i) ? a.normalisers[row] : INFINITY;
      tiles.known().product[i] = rows.valid(i) ? a.out_products[row] : 0.0f;
    }
  }
  commit_tiles();
  wait_for_tiles<0>();
  __syncthreads();
  set_factors<T, E>(rows, tiles.q(slot));
  __syncthreads();
}

/// Of 16 keys of the chunk in `slot` and the queries of the later chunk, in `later`.
template <class T, int E, int M, int W>
__device__ void walk_queries(float (&sum)[E / 8][4], float (&of_value)[E / 8][4], const RunTiles<T, E, M>& tiles, int slot,
                             int later, bool causal, int round) {
  const auto& rows = tiles.rows(slot);
  const auto& query_rows = tiles.rows(later);
  const int lane = threadIdx.x % 32, t = lane % 4, own = threadIdx.x / 32 * 16;
  T* const stored = tiles.changes() + ((slot == later ? M : 0) + own + lane / 4) * tile_stride<M>;
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
  load_left_rows<T, E>(left, tiles.q(slot), own);
  load_left_rows<T, E>(left_value, tiles.v(slot), own);
#pragma unroll 1
  for (int tile = 0; tile < M; tile += 16) {
    float weights[2][4], changes[2][4];
    multiply_rows<T, E>(weights, left, tiles.q(later), tile);
    multiply_rows<T, E>(changes, left_value, tiles.gradient(), tile);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = tile + i * 8 + 2 * t;
      const Columns<W, M> query(query_rows, row, causal);
      const auto normaliser = *reinterpret_cast<const float2*>(tiles.known().normaliser + row);
      const auto product = *reinterpret_cast<const float2*>(tiles.known().product + row);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float shift = barrier[j / 2] - (j % 2 == 0 ? normaliser.x : normaliser.y);
        float logit = fmaf(weights[i][j], factor[j / 2], shift);
        const bool self = slot == later && tile == own && i * 8 + 2 * t + j % 2 == lane / 4 + j / 2 * 8;
        if (self) logit = round == 0 ? self_logit + shift : -INFINITY;
        bool counts = !earlier.show(query.chunks[j % 2], chunks[j / 2]);
        if (causal) counts = counts && place[j / 2] <= query.place_of(j % 2);
        weights[i][j] = counts ? fast_exp2(logit) : 0.0f;
        changes[i][j] = self ? 0.0f : weights[i][j] * (changes[i][j] - (j % 2 == 0 ? product.x : product.y));
      }
#pragma unroll
      for (int j = 0; j < 2; ++j)
        *reinterpret_cast<unsigned*>(stored + j * 8 * tile_stride<M> + row) = Half<T>::pack(
            changes[i][2 * j] * (factor[j] * (1 / log2_e)), changes[i][2 * j + 1] * (factor[j] * (1 / log2_e)));
    }
    add_weighted<T, E>(of_value, weights[0], weights[1], tiles.gradient(), tile);
    add_weighted<T, E>(sum, changes[0], changes[1], tiles.q(later), tile);
  }
}

/// The gradient of 16 queries of the later chunk, of the keys of both.
template <class T, int E, int M>
__device__ void gather_query(float (&sum)[E / 8][4], const RunTiles<T, E, M>& tiles, int later) {
  const int own = threadIdx.x / 32 * 16;
#pragma unroll
  for (int part = 0; part < 2; ++part)
#pragma unroll 2
    for (int key = 0; key < M; key += 16) {
      unsigned a[4];
      load_left_transposed<M>(a, tiles.changes(), part * M + key, own);
      const T* keys = tiles.q(part == 0 ? later ^ 1 : later);
#pragma unroll
      for (int n = 0; n < E; n += 16) {
        unsigned b[4];
        load_right<E>(b, keys, key, n);
        Half<T>::multiply(sum[n / 8], a, b[0], b[1]);
        Half<T>::multiply(sum[n / 8 + 1], a, b[2], b[3]);
      }
    }
}

template <int N>
__device__ void clear(float (&sum)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[n][j] = 0;
}

template <class T, int E>
__device__ void add_through_norm(float (&sum)[E / 8][4], const float (&as_key)[E / 8][4], const T* rows,
                                 const float* factors) {
  const int lane = threadIdx.x % 32, own = threadIdx.x / 32 * 16 + lane / 4;
  const auto element = [&](int n, int j) {
    return as_float(rows[(own + j / 2 * 8) * tile_stride<E> + n * 8 + lane % 4 * 2 + j % 2]);
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
      sum[n][j] += factors[own + j / 2 * 8] / log2_e * (as_key[n][j] - along[j / 2] * element(n, j));
}

template <class T, int E, int M, int W>
__device__ void walk_run(const LshArguments& a, const RunTiles<T, E, M>& tiles, int length, std::int64_t head, int round) {
  const int first = static_cast<int>(blockIdx.x) * length, own = threadIdx.x / 32 * 16;
  const int chunks = static_cast<int>((a.rows + M - 1) / M), last = first + length < chunks ? first + length : chunks;
  const std::int64_t base = (head * a.rounds + round) * a.rows * E;
  const float ones[2] = {1, 1};
  float as_query[E / 8][4], as_key[E / 8][4], of_value[E / 8][4];
  load_chunk<T, E, M>(a, tiles, first - 1, false, head, round);
  clear(as_key), clear(of_value);
#pragma unroll 1
  for (int chunk = first; chunk <= last; ++chunk) {
    const int later = chunk & 1, before = later ^ 1;
    __syncthreads();
    load_chunk<T, E, M>(a, tiles, chunk, true, head, round);
    walk_queries<T, E, M, W>(as_key, of_value, tiles, before, later, a.causal, round);
    if (chunk > first) {
      add_through_norm<T, E>(as_query, as_key, tiles.q(before), tiles.rows(before).factor);
      store_rows<T, E>(of_value, tiles.rows(before).place + own, static_cast<T*>(a.round_values) + base, ones);
      store_rows<T, E>(as_query, tiles.rows(before).place + own, static_cast<T*>(a.round_q_gradients) + base, ones);
    }
    if (chunk == last) break;
    clear(as_key), clear(of_value), clear(as_query);
    walk_queries<T, E, M, W>(as_key, of_value, tiles, later, later, a.causal, round);
    __syncthreads();
    gather_query<T, E, M>(as_query, tiles, later);
  }
}

/// Blocks at once of a multiprocessor, which leaves 168 registers a thread; wide heads need more of them.
template <int E, int M>
constexpr int run_blocks = E <= 64 ? 192 / M : 1;

/// One block a run of chunks, one after the other: each as queries of itself and the one before it. What these give the keys
/// is held until the next chunk's queries have added to it.
template <class T, int E, int M>
__global__ void __launch_bounds__(M * 2, (run_blocks<E, M>)) run_kernel(LshArguments a, int length) {
  extern __shared__ __align__(16) unsigned char memory[];
  const RunTiles<T, E, M> tiles{memory};
  const int round = blockIdx.y;
  const std::int64_t head = blockIdx.z;
  if (round == 0) walk_run<T, E, M, 0>(a, tiles, length, head, round);
  else if (round <= 2) walk_run<T, E, M, 1>(a, tiles, length, head, round);
  else if (round <= 4) walk_run<T, E, M, 2>(a, tiles, length, head, round);
  else walk_run<T, E, M, 4>(a, tiles, length, head, round);
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
#pragma unroll 4
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
    constexpr int bytes = run_bytes<T, E, M>;
    const auto kernel = run_kernel<T, E, M>;
    if (const auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
        error != cudaSuccess)
      return cudaGetErrorString(error);
    const auto chunks = (a.rows + M - 1) / M, length = lsh_run_length(chunks, a.rounds * a.batch * a.heads);
    const dim3 grid(static_cast<unsigned>((chunks + length - 1) / length), static_cast<unsigned>(a.rounds),
                    static_cast<unsigned>(a.batch * a.heads));
    const auto all = a.batch * a.heads * a.rows;
    out_products_kernel<T><<<row_blocks(all * 4), row_threads, 0, stream>>>(a);
    kernel<<<grid, M * 2, bytes, stream>>>(a, static_cast<int>(length));
    add_rounds_kernel<T><<<row_blocks(all * (E / 8)), row_threads, 0, stream>>>(a);
    return last_error();
  }
};

}  // namespace

const char* lsh_backward_cuda(const LshArguments& a, void* stream) {
  return dispatch(a, Backward{a, static_cast<cudaStream_t>(stream)});
}

}  // namespace transpool

#pragma once

#include "operators/attention/lsh_cuda.h"
#include "operators/attention/matrix_tiles.cuh"

/// What both passes of LSH attention share: the rows of a block, which pairs count, the rows of tensors in shared memory.
namespace transpool {
namespace {

constexpr float log2_e = 1.4426950408889634f;
constexpr float self_logit = -1e5f * log2_e;

__device__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <class T>
struct alignas(16) Pack {
  T element[8];
};

/// What a block knows of its N rows, in sorted order.
template <int N>
struct alignas(16) Rows {
  int place[N];      ///< in the sequence; -1: there is no such row
  float factor[N];   ///< what makes a logit, in units of log 2, of a product with the row as a key
  float barrier[N];  ///< added to that logit: -inf where the row is not valid, so that none may see it
  unsigned chunks[lsh_most_rounds / 2][N];  ///< its chunk in each round, two to a word

  __device__ bool valid(int row) const { return barrier[row] == 0; }
};

template <class T>
__device__ const T* head_rows(const LshTensor& t, const LshArguments& a, std::int64_t head) {
  return static_cast<const T*>(t.data) + head / a.heads * t.batch_stride + head % a.heads * t.head_stride;
}

/// Rows of a batch row from there on are not valid.
__device__ int length_of(const LshArguments& a, std::int64_t head) {
  return static_cast<int>(a.lengths == nullptr ? a.rows : a.lengths[head / a.heads]);
}

/// The rows at N sorted places from `first` on, but for their factors.
template <int N>
__device__ void load_rows(Rows<N>& rows, int first, const LshArguments& a, std::int64_t head, int round) {
  const int length = length_of(a, head);
  for (int i = threadIdx.x; i < N; i += blockDim.x) {
    const int sorted = first + i;
    const bool there = sorted >= 0 && sorted < a.rows;
    const int place = there ? a.order[(head * a.rounds + round) * a.rows + sorted] : -1;
    rows.place[i] = place;
    rows.barrier[i] = there && place < length ? 0.0f : -INFINITY;
    if (round == 0 || !there) continue;
    const uint4 chunks = *reinterpret_cast<const uint4*>(a.chunks + (head * a.rows + place) * lsh_most_rounds);
    rows.chunks[0][i] = chunks.x, rows.chunks[1][i] = chunks.y, rows.chunks[2][i] = chunks.z, rows.chunks[3][i] = chunks.w;
  }
}

/// Copies `count` rows of a tensor from `first` on into a tile; zeros where a row is not valid. All threads of the block.
template <class T, int E, int N>
__device__ void load_tile(T* tile, const Rows<N>& rows, int first, int count, const T* source, std::int64_t stride) {
  constexpr int packs = E / 8;
  for (int i = threadIdx.x; i < count * packs; i += blockDim.x) {
    const int row = first + i / packs, pack = i % packs;
    const bool valid = rows.valid(row);
    const T* from = valid ? source + rows.place[row] * stride + pack * 8 : source;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(tile + (row - first) * tile_stride<E> + pack * 8)), "l"(from), "r"(valid ? 16 : 0)
                 : "memory");
  }
}

/// Ends a group of copies into tiles.
__device__ void commit_tiles() { asm volatile("cp.async.commit_group;" : : : "memory"); }

/// Waits for this thread's groups of copies but for the last `open` ones.
template <int open>
__device__ void wait_for_tiles() {
  asm volatile("cp.async.wait_group %0;" : : "n"(open) : "memory");
}

/// Keys are of length one: the factor of each row from its norm. One thread eight columns.
template <class T, int E, int N>
__device__ void set_factors(Rows<N>& rows, const T* tile) {
  constexpr int packs = E / 8;
  for (int i = threadIdx.x; i < N * packs; i += blockDim.x) {
    const auto pack = *reinterpret_cast<const Pack<T>*>(tile + i / packs * tile_stride<E> + i % packs * 8);
    float sum = 0;
#pragma unroll
    for (int k = 0; k < 8; ++k) sum = fmaf(as_float(pack.element[k]), as_float(pack.element[k]), sum);
#pragma unroll
    for (int step = 1; step < packs; step *= 2) sum += __shfl_xor_sync(all_lanes, sum, step);
    if (i % packs == 0) rows.factor[i / packs] = sum > 1e-24f ? log2_e * rsqrtf(static_cast<float>(E)) * rsqrtf(sum) : 0.0f;
  }
}

constexpr unsigned half_tops = 0x80008000u;
constexpr unsigned half_others = 0x7ffe7ffeu;  // in which a half is neither 0 nor 1, its top aside

/// A pair that several rounds show counts in the first of them. W: words of chunks of the rounds before this one.
template <int W>
struct Earlier {
  unsigned added[W > 0 ? W : 1];  ///< sets the top of a half that is 2 or more, and of the rounds that are not before

  __device__ explicit Earlier(int round) {
#pragma unroll
    for (int w = 0; w < W; ++w) added[w] = half_others + (2 * w >= round ? 2u : 0u) + (2 * w + 1 >= round ? 0x20000u : 0u);
  }

  /// Whether in an earlier round the query's chunk is the key's or the one after. Chunks are less than 2^15.
  __device__ bool show(const unsigned (&query)[W > 0 ? W : 1], const unsigned (&key)[W > 0 ? W : 1]) const {
    unsigned tops = half_tops;
#pragma unroll
    for (int w = 0; w < W; ++w) tops &= (((query[w] | half_tops) - key[w]) & half_others) + added[w];
    return W > 0 && tops != half_tops;
  }
};

/// Two neighbouring rows of a block, from an even one on, as the columns of a product.
template <int W, int N>
struct Columns {
  float2 factor, barrier;
  int2 place;
  unsigned chunks[2][W > 0 ? W : 1];

  __device__ Columns(const Rows<N>& rows, int row, bool causal) {
    factor = *reinterpret_cast<const float2*>(rows.factor + row);
    barrier = *reinterpret_cast<const float2*>(rows.barrier + row);
    place = causal ? *reinterpret_cast<const int2*>(rows.place + row) : int2{0, 0};
#pragma unroll
    for (int w = 0; w < W; ++w) {
      const auto both = *reinterpret_cast<const uint2*>(rows.chunks[w] + row);
      chunks[0][w] = both.x, chunks[1][w] = both.y;
    }
  }
  __device__ float factor_of(int i) const { return i == 0 ? factor.x : factor.y; }
  __device__ float barrier_of(int i) const { return i == 0 ? barrier.x : barrier.y; }
  __device__ int place_of(int i) const { return i == 0 ? place.x : place.y; }
};

__device__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(all_lanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(all_lanes, x, 2));
}

__device__ float quad_sum(float x) {
  x += __shfl_xor_sync(all_lanes, x, 1);
  return x + __shfl_xor_sync(all_lanes, x, 2);
}

/// The words of four lanes, transposed: lane t of a quad gets word t of each of them.
__device__ void transpose_quad(unsigned (&word)[4]) {
#pragma unroll
  for (int step = 1; step <= 2; ++step) {
    const bool upper = threadIdx.x & step;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      unsigned &low = word[step == 1 ? 2 * i : i], &high = word[step == 1 ? 2 * i + 1 : i + 2];
      const unsigned other = __shfl_xor_sync(all_lanes, upper ? low : high, step);
      (upper ? low : high) = other;
    }
  }
}

/// Writes a fragment of 16 rows to their places in (n, E), 16 bytes at a time.
template <class T, int E>
__device__ void store_rows(const float (&sum)[E / 8][4], const int* place, T* target, const float (&factor)[2]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = place[lane / 4 + i * 8];
#pragma unroll
    for (int n = 0; n < E / 8; n += 4) {
      unsigned word[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) word[j] = Half<T>::pack(sum[n + j][2 * i] * factor[i], sum[n + j][2 * i + 1] * factor[i]);
      transpose_quad(word);
      if (row >= 0)
        *reinterpret_cast<uint4*>(target + static_cast<std::int64_t>(row) * E + (n + lane % 4) * 8) =
            uint4{word[0], word[1], word[2], word[3]};
    }
  }
}

template <class T>
__device__ Pack<T>* pack_of(const LshTensor& t, const LshArguments& a, std::int64_t head, std::int64_t row, int pack) {
  return reinterpret_cast<Pack<T>*>(static_cast<T*>(t.data) + head / a.heads * t.batch_stride +
                                    head % a.heads * t.head_stride + row * t.row_stride + pack * 8);
}

constexpr int row_threads = 256;

unsigned row_blocks(std::int64_t threads) { return static_cast<unsigned>((threads + row_threads - 1) / row_threads); }

const char* last_error() {
  const auto error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

/// Calls `pass`.template run<T, E, M>() of the element type, the head width and the chunk of the arguments.
template <class T, class Pass>
const char* dispatch_sizes(const LshArguments& a, const Pass& pass) {
  if (a.chunk == 64 && a.width == 64) return pass.template run<T, 64, 64>();
  if (a.chunk == 64 && a.width == 32) return pass.template run<T, 32, 64>();
  if (a.chunk == 64 && a.width == 128) return pass.template run<T, 128, 64>();
  if (a.chunk == 32 && a.width == 64) return pass.template run<T, 64, 32>();
  if (a.chunk == 32 && a.width == 32) return pass.template run<T, 32, 32>();
  if (a.chunk == 32 && a.width == 128) return pass.template run<T, 128, 32>();
  return "lsh: no kernel for this chunk and width";
}

template <class Pass>
const char* dispatch(const LshArguments& a, const Pass& pass) {
  if (a.element == Element::bfloat16) return dispatch_sizes<__nv_bfloat16>(a, pass);
  if (a.element == Element::float16) return dispatch_sizes<__half>(a, pass);
  return "lsh: no kernel for this element type";
}

}  // namespace
}  // namespace transpool

#include "operators/attention/lsh_cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace transpool {
namespace {

constexpr float log2_e = 1.4426950408889634f;
constexpr float self_logit = -1e5f * log2_e;
constexpr int most_rounds = 8;
constexpr unsigned all_lanes = 0xffffffffu;

__device__ float as_float(double x) { return static_cast<float>(x); }
__device__ float as_float(float x) { return x; }
__device__ float as_float(__half x) { return __half2float(x); }
__device__ float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }

// ---- hashing

constexpr int hash_threads = 128;
constexpr int hash_planes = 32;  // of one load

/// One thread a row of one head in one round: the largest of its products with the planes and of their negatives.
template <class T, int E>
__global__ void __launch_bounds__(hash_threads) hash_kernel(LshArguments a) {
  __shared__ float4 planes[hash_planes][E / 4];
  const int head = blockIdx.z % a.heads, batch = blockIdx.z / a.heads, round = blockIdx.y;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * hash_threads + threadIdx.x;
  const int half = static_cast<int>(a.buckets / 2);
  float q[E];
  if (row < a.rows) {
    const T* source =
        static_cast<const T*>(a.q.data) + batch * a.q.batch_stride + head * a.q.head_stride + row * a.q.row_stride;
#pragma unroll
    for (int i = 0; i < E; ++i) q[i] = as_float(source[i]);
  } else {
#pragma unroll
    for (int i = 0; i < E; ++i) q[i] = 0;
  }
  const float* source = a.planes + (static_cast<std::int64_t>(head) * a.rounds + round) * E * half;
  float highest = -INFINITY, lowest = INFINITY;
  int above = 0, below = 0;
  for (int first = 0; first < half; first += hash_planes) {
    __syncthreads();
    for (int i = threadIdx.x; i < hash_planes * E; i += hash_threads) {
      const int plane = i % hash_planes, feature = i / hash_planes;
      reinterpret_cast<float*>(planes[plane])[feature] =
          first + plane < half ? source[static_cast<std::int64_t>(feature) * half + first + plane] : 0.0f;
    }
    __syncthreads();
    const int count = half - first < hash_planes ? half - first : hash_planes;
    for (int plane = 0; plane < count; ++plane) {
      float sum[4] = {};
#pragma unroll
      for (int i = 0; i < E / 4; ++i) {
        const float4 p = planes[plane][i];
        sum[0] = fmaf(q[4 * i], p.x, sum[0]);
        sum[1] = fmaf(q[4 * i + 1], p.y, sum[1]);
        sum[2] = fmaf(q[4 * i + 2], p.z, sum[2]);
        sum[3] = fmaf(q[4 * i + 3], p.w, sum[3]);
      }
      const float product = (sum[0] + sum[1]) + (sum[2] + sum[3]);
      if (product > highest) highest = product, above = first + plane;
      if (product < lowest) lowest = product, below = first + plane;
    }
  }
  if (row < a.rows)
    a.hashes[((static_cast<std::int64_t>(blockIdx.z)) * a.rounds + round) * a.rows + row] =
        highest >= -lowest ? above : half + below;
}

// ---- sorting

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
  const int rows = static_cast<int>(a.rows), buckets = static_cast<int>(a.buckets);
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
      a.chunks[(head * rows + row) * most_rounds + round] =
          static_cast<std::uint16_t>((start + rank) / static_cast<int>(a.chunk));
      if (round == 0)
        for (int r = static_cast<int>(a.rounds); r < most_rounds; ++r) a.chunks[(head * rows + row) * most_rounds + r] = 0;
    }
    __syncwarp();
  }
}

// ---- tensor cores

__device__ unsigned shared_address(const void* pointer) { return static_cast<unsigned>(__cvta_generic_to_shared(pointer)); }

__device__ void load_matrices(unsigned (&r)[4], const void* pointer) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(pointer))
               : "memory");
}

__device__ void load_transposed(unsigned (&r)[4], const void* pointer) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(pointer))
               : "memory");
}

template <class T>
struct Half;

template <>
struct Half<__nv_bfloat16> {
  static __device__ unsigned pack(float low, float high) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&both);
  }
  static __device__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

template <>
struct Half<__half> {
  static __device__ unsigned pack(float low, float high) {
    const __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&both);
  }
  static __device__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

/// Rows of a tile stand 16 bytes further apart than they are wide: eight of them fall into different banks.
template <int E>
constexpr int tile_stride = E + 8;

/// 16 rows by 16 columns from (row, column) as the left factor of a product.
template <int E, class T>
__device__ void load_left(unsigned (&r)[4], const T* tile, int row, int column) {
  const int lane = threadIdx.x % 32;
  load_matrices(r, tile + (row + lane % 16) * tile_stride<E> + column + lane / 16 * 8);
}

/// 16 rows by 16 columns as the right factor, rows being its columns: r[0], r[1] of the first eight rows, r[2], r[3].
template <int E, class T>
__device__ void load_right_rows(unsigned (&r)[4], const T* tile, int row, int column) {
  const int lane = threadIdx.x % 32;
  load_matrices(r, tile + (row + lane % 8 + lane / 16 * 8) * tile_stride<E> + column + lane / 8 % 2 * 8);
}

/// 16 rows by 16 columns as the right factor as it stands: r[0], r[1] of the first eight columns, r[2], r[3].
template <int E, class T>
__device__ void load_right(unsigned (&r)[4], const T* tile, int row, int column) {
  const int lane = threadIdx.x % 32;
  load_transposed(r, tile + (row + lane % 16) * tile_stride<E> + column + lane / 16 * 8);
}

/// sum (16 x 16, as two of 16 x 8) = rows of `left` from `row` on times rows of `right` from `other` on, transposed.
template <class T, int E>
__device__ void multiply_rows(float (&sum)[2][4], const T* left, int row, const T* right, int other) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[i][j] = 0;
#pragma unroll
  for (int k = 0; k < E; k += 16) {
    unsigned a[4], b[4];
    load_left<E>(a, left, row, k);
    load_right_rows<E>(b, right, other, k);
    Half<T>::multiply(sum[0], a, b[0], b[1]);
    Half<T>::multiply(sum[1], a, b[2], b[3]);
  }
}

/// sum (16 x E) += weights (16 x 16, in accumulator layout) times rows of `right` from `row` on.
template <class T, int E>
__device__ void add_weighted(float (&sum)[E / 8][4], const float (&first)[4], const float (&second)[4], const T* right,
                             int row) {
  const unsigned a[4] = {Half<T>::pack(first[0], first[1]), Half<T>::pack(first[2], first[3]),
                         Half<T>::pack(second[0], second[1]), Half<T>::pack(second[2], second[3])};
#pragma unroll
  for (int n = 0; n < E; n += 16) {
    unsigned b[4];
    load_right<E>(b, right, row, n);
    Half<T>::multiply(sum[n / 8], a, b[0], b[1]);
    Half<T>::multiply(sum[n / 8 + 1], a, b[2], b[3]);
  }
}

// ---- attention

/// What is known of one row of a tile.
struct alignas(16) Row {
  uint4 chunks;  ///< its chunk in each round, two to a word
  int seen;      ///< its place in the sequence as a key; no_key where none may see it
  float factor;  ///< what makes a logit, in units of log 2, of its product as a key: log2 e / (sqrt(e) |q|)
  int place;     ///< in the sequence; -1: there is no such row
};

constexpr int no_key = -2;
constexpr unsigned half_tops = 0x80008000u;

/// Which pairs count, and how much.
struct Pairs {
  unsigned rounds;  ///< the bits that `shown` may set
  bool second_half, causal;

  __device__ explicit Pairs(const LshArguments& a) : rounds(0), second_half(a.rounds > 4), causal(a.causal) {
    for (int r = 0; r < a.rounds; ++r) rounds |= (r % 2 == 0 ? 0x8000u : 0x80000000u) >> (r / 2);
  }

  __device__ float logit(float product, int query, const Row& key) const {
    if (key.seen == query) return self_logit;
    const bool barred = key.seen == no_key || (causal && key.seen > query);
    return barred ? -INFINITY : product * key.factor;
  }

  /// One over the rounds that show the pair. Most pairs are shown by one.
  __device__ float share(const Row& query, const Row& key) const {
    unsigned bits = shown(query.chunks.x, key.chunks.x) | shown(query.chunks.y, key.chunks.y) >> 1;
    if (second_half) bits |= shown(query.chunks.z, key.chunks.z) >> 2 | shown(query.chunks.w, key.chunks.w) >> 3;
    bits &= rounds;
    // A row sees itself in every round, and nothing else where that counts.
    if ((bits & (bits - 1)) == 0 || key.seen == query.place) return 1;
    return 1 / static_cast<float>(__popc(bits));
  }

 private:
  /// The top bit of each half in which the query's chunk is the key's or the one after; chunks are less than 2^15.
  static __device__ unsigned shown(unsigned query, unsigned key) {
    const unsigned back = (((query | half_tops) - key) ^ half_tops) & 0xfffefffeu;
    return (back - 0x00010001u) & ~back & half_tops;
  }
};

template <class T>
__device__ const T* head_rows(const LshTensor& t, const LshArguments& a, std::int64_t head) {
  return static_cast<const T*>(t.data) + head / a.heads * t.batch_stride + head % a.heads * t.head_stride;
}

/// Copies `count` rows of a tensor into a tile; zeros where there is no row. All threads of the block.
template <class T, int E>
__device__ void load_tile(T* tile, const Row* rows, int count, const T* source, std::int64_t stride) {
  constexpr int packs = E / 8;
#pragma unroll 4
  for (int i = threadIdx.x; i < count * packs; i += blockDim.x) {
    const int row = i / packs, pack = i % packs;
    const int place = rows[row].place;
    const uint4 value = place < 0 ? uint4{0, 0, 0, 0} : *reinterpret_cast<const uint4*>(source + place * stride + pack * 8);
    *reinterpret_cast<uint4*>(tile + row * tile_stride<E> + pack * 8) = value;
  }
}

/// Rows of a batch row from there on are not valid.
__device__ int length_of(const LshArguments& a, std::int64_t head) {
  return static_cast<int>(a.lengths == nullptr ? a.rows : a.lengths[head / a.heads]);
}

/// The rows at `count` sorted places from `first` on.
__device__ void load_rows(Row* rows, int count, int first, const LshArguments& a, std::int64_t head, int round) {
  const int length = length_of(a, head);
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const int sorted = first + i;
    Row row{{0, 0, 0, 0}, no_key, 0, -1};
    if (sorted >= 0 && sorted < a.rows) {
      row.place = a.order[(head * a.rounds + round) * a.rows + sorted];
      if (row.place < length) row.seen = row.place;
      row.chunks = *reinterpret_cast<const uint4*>(a.chunks + (head * a.rows + row.place) * most_rounds);
    }
    rows[i] = row;
  }
}

/// Keys are of length one: the factor of each row from its norm.
template <class T, int E>
__device__ void set_factors(Row* rows, int count, const T* tile) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    float sum = 0;
#pragma unroll 8
    for (int k = 0; k < E; ++k) {
      const float x = as_float(tile[i * tile_stride<E> + k]);
      sum = fmaf(x, x, sum);
    }
    rows[i].factor = sum > 1e-24f ? log2_e * rsqrtf(static_cast<float>(E)) * rsqrtf(sum) : 0.0f;
  }
}

__device__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(all_lanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(all_lanes, x, 2));
}

__device__ float quad_sum(float x) {
  x += __shfl_xor_sync(all_lanes, x, 1);
  return x + __shfl_xor_sync(all_lanes, x, 2);
}

/// Writes a fragment of 16 rows to their places in (n, E).
template <class T, int E>
__device__ void store_rows(const float (&sum)[E / 8][4], const Row* rows, T* target, float first_factor,
                           float second_factor) {
  const int lane = threadIdx.x % 32, t = lane % 4;
  const int places[2] = {rows[lane / 4].place, rows[lane / 4 + 8].place};
#pragma unroll
  for (int n = 0; n < E / 8; ++n) {
    if (places[0] >= 0)
      *reinterpret_cast<unsigned*>(target + static_cast<std::int64_t>(places[0]) * E + n * 8 + 2 * t) =
          Half<T>::pack(sum[n][0] * first_factor, sum[n][1] * first_factor);
    if (places[1] >= 0)
      *reinterpret_cast<unsigned*>(target + static_cast<std::int64_t>(places[1]) * E + n * 8 + 2 * t) =
          Half<T>::pack(sum[n][2] * second_factor, sum[n][3] * second_factor);
  }
}

template <class T, int E, int M>
constexpr int forward_bytes = 4 * M* tile_stride<E>* static_cast<int>(sizeof(T)) + 2 * M* static_cast<int>(sizeof(Row));

/// One block a chunk, one warp 16 of its rows: their logits stay in registers.
template <class T, int E, int M>
__global__ void __launch_bounds__(M * 2) forward_kernel(LshArguments a) {
  extern __shared__ __align__(16) unsigned char memory[];
  T* const keys = reinterpret_cast<T*>(memory);
  T* const values = keys + 2 * M * tile_stride<E>;
  Row* const rows = reinterpret_cast<Row*>(values + 2 * M * tile_stride<E>);
  const int chunk = blockIdx.x, round = blockIdx.y;
  const std::int64_t head = blockIdx.z;
  load_rows(rows, 2 * M, (chunk - 1) * M, a, head, round);
  __syncthreads();
  load_tile<T, E>(keys, rows, 2 * M, head_rows<T>(a.q, a, head), a.q.row_stride);
  load_tile<T, E>(values, rows, 2 * M, head_rows<T>(a.v, a, head), a.v.row_stride);
  __syncthreads();
  set_factors<T, E>(rows, 2 * M, keys);
  __syncthreads();

  const int lane = threadIdx.x % 32, own = M + threadIdx.x / 32 * 16, t = lane % 4;
  const Pairs pairs(a);
  const Row queries[2] = {rows[own + lane / 4], rows[own + lane / 4 + 8]};
  float logits[M / 4][4];
  float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int tile = 0; tile < 2 * M / 16; ++tile) {
    float products[2][4];
    multiply_rows<T, E>(products, keys, own, keys, tile * 16);
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float logit = pairs.logit(products[i][j], queries[j / 2].place, rows[tile * 16 + i * 8 + 2 * t + j % 2]);
        logits[2 * tile + i][j] = logit;
        top[j / 2] = fmaxf(top[j / 2], logit);
      }
  }
  float sum[2] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    top[i] = quad_max(top[i]);
    if (top[i] == -INFINITY) top[i] = 0;
  }
#pragma unroll
  for (int i = 0; i < M / 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      logits[i][j] = exp2f(logits[i][j] - top[j / 2]);
      if (a.rounds > 1) logits[i][j] *= pairs.share(queries[j / 2], rows[i * 8 + 2 * t + j % 2]);
      sum[j / 2] += logits[i][j];
    }
  float out[E / 8][4] = {};
#pragma unroll
  for (int tile = 0; tile < 2 * M / 16; ++tile)
    add_weighted<T, E>(out, logits[2 * tile], logits[2 * tile + 1], values, tile * 16);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sum[i] = quad_sum(sum[i]);
    if (queries[i].seen == no_key) sum[i] = 0;
  }
  const std::int64_t base = (head * a.rounds + round) * a.rows;
  store_rows<T, E>(out, rows + own, static_cast<T*>(a.round_values) + base * E, sum[0] > 0 ? 1 / sum[0] : 0.0f,
                   sum[1] > 0 ? 1 / sum[1] : 0.0f);
#pragma unroll
  for (int i = 0; i < 2; ++i)
    if (t == 0 && queries[i].place >= 0)
      a.round_normalisers[base + queries[i].place] = sum[i] > 0 ? (top[i] + log2f(sum[i])) / log2_e : -INFINITY;
}

template <class T>
struct alignas(16) Pack {
  T element[8];
};

template <class T>
__device__ Pack<T>* pack_of(const LshTensor& t, const LshArguments& a, std::int64_t head, std::int64_t row, int pack) {
  return reinterpret_cast<Pack<T>*>(static_cast<T*>(t.data) + head / a.heads * t.batch_stride +
                                    head % a.heads * t.head_stride + row * t.row_stride + pack * 8);
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
    for (int r = 0; r < a.rounds; ++r) {
      const float share = __expf(normalisers[r * a.rows] - top);
      const auto part = static_cast<const Pack<T>*>(a.round_values)[((head * a.rounds + r) * a.rows + row) * packs + pack];
      sum += share;
#pragma unroll
      for (int i = 0; i < 8; ++i) out[i] += share * as_float(part.element[i]);
    }
  Pack<T> result;
#pragma unroll
  for (int i = 0; i < 8; ++i) result.element[i] = static_cast<T>(sum > 0 ? out[i] / sum : 0.0f);
  *pack_of<T>(a.out, a, head, row, pack) = result;
  if (pack == 0) a.normalisers[head * a.rows + row] = sum > 0 ? top + __logf(sum) : 0.0f;
}

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

/// Of a query in the backward pass: its log-sum-exp in units of log 2, <out, gradient>.
struct Known {
  float normaliser, product;
};

template <class T, int E, int M>
constexpr int backward_bytes = 7 * M* tile_stride<E>* static_cast<int>(sizeof(T)) +
                               3 * M* static_cast<int>(sizeof(Row) + sizeof(Known));

/// One block the middle one of three chunks: its rows as queries of the first two, and as keys of the last two. One warp 16
/// of its rows.
template <class T, int E, int M>
__global__ void __launch_bounds__(M * 2) backward_kernel(LshArguments a) {
  extern __shared__ __align__(16) unsigned char memory[];
  T* const q = reinterpret_cast<T*>(memory);       // 3 M rows
  T* const v = q + 3 * M * tile_stride<E>;         // the first 2 M
  T* const gradient = v + 2 * M * tile_stride<E>;  // the last 2 M
  Row* const rows = reinterpret_cast<Row*>(gradient + 2 * M * tile_stride<E>);
  Known* const known = reinterpret_cast<Known*>(rows + 3 * M);
  const int chunk = blockIdx.x, round = blockIdx.y;
  const std::int64_t head = blockIdx.z;
  load_rows(rows, 3 * M, (chunk - 1) * M, a, head, round);
  __syncthreads();
  load_tile<T, E>(q, rows, 3 * M, head_rows<T>(a.q, a, head), a.q.row_stride);
  load_tile<T, E>(v, rows, 2 * M, head_rows<T>(a.v, a, head), a.v.row_stride);
  load_tile<T, E>(gradient, rows + M, 2 * M, head_rows<T>(a.out_gradient, a, head), a.out_gradient.row_stride);
  for (int i = threadIdx.x; i < 3 * M; i += blockDim.x) {
    const int place = rows[i].place;
    known[i] = rows[i].seen == no_key
                   ? Known{INFINITY, 0}
                   : Known{a.normalisers[head * a.rows + place] * log2_e, a.out_products[head * a.rows + place]};
  }
  __syncthreads();
  set_factors<T, E>(rows, 3 * M, q);
  __syncthreads();

  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16, own = M + warp_row, g = lane / 4, t = lane % 4;
  const Pairs pairs(a);
  const Row mine[2] = {rows[own + g], rows[own + g + 8]};
  const Known mine_known[2] = {known[own + g], known[own + g + 8]};
  float as_query[E / 8][4] = {};
#pragma unroll 1
  for (int tile = 0; tile < 2 * M; tile += 16) {
    float products[2][4], weight_gradients[2][4];
    multiply_rows<T, E>(products, q, own, q, tile);
    multiply_rows<T, E>(weight_gradients, gradient, warp_row, v, tile);
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const Row& key = rows[tile + i * 8 + 2 * t + j % 2];
        float weight = exp2f(pairs.logit(products[i][j], mine[j / 2].place, key) - mine_known[j / 2].normaliser);
        if (a.rounds > 1) weight *= pairs.share(mine[j / 2], key);
        // A row's logit for itself is a constant.
        products[i][j] = key.seen == mine[j / 2].place
                             ? 0.0f
                             : weight * (weight_gradients[i][j] - mine_known[j / 2].product) * (key.factor / log2_e);
      }
    add_weighted<T, E>(as_query, products[0], products[1], q, tile);
  }
  float as_key[E / 8][4] = {}, of_value[E / 8][4] = {};
#pragma unroll 1
  for (int tile = M; tile < 3 * M; tile += 16) {
    float products[2][4], weights[2][4];
    multiply_rows<T, E>(products, q, own, q, tile);
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int query = tile + i * 8 + 2 * t + j % 2;
        weights[i][j] = exp2f(pairs.logit(products[i][j], rows[query].place, mine[j / 2]) - known[query].normaliser);
        if (a.rounds > 1) weights[i][j] *= pairs.share(rows[query], mine[j / 2]);
      }
    add_weighted<T, E>(of_value, weights[0], weights[1], gradient, tile - M);
    multiply_rows<T, E>(products, v, own, gradient, tile - M);
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int query = tile + i * 8 + 2 * t + j % 2;
        const bool self = mine[j / 2].seen == rows[query].place;
        products[i][j] = self ? 0.0f : weights[i][j] * (products[i][j] - known[query].product);
      }
    add_weighted<T, E>(as_key, products[0], products[1], q, tile);
  }
  // Through the division by the norm: what is left of the key's gradient is orthogonal to it.
  float along[2] = {}, squared[2] = {};
#pragma unroll
  for (int n = 0; n < E / 8; ++n)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float x = as_float(q[(own + g + j / 2 * 8) * tile_stride<E> + n * 8 + 2 * t + j % 2]);
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
    for (int j = 0; j < 4; ++j) {
      const float x = as_float(q[(own + g + j / 2 * 8) * tile_stride<E> + n * 8 + 2 * t + j % 2]);
      as_query[n][j] += mine[j / 2].factor / log2_e * (as_key[n][j] - along[j / 2] * x);
    }
  const std::int64_t base = (head * a.rounds + round) * a.rows * E;
  store_rows<T, E>(as_query, rows + own, static_cast<T*>(a.round_q_gradients) + base, 1, 1);
  store_rows<T, E>(of_value, rows + own, static_cast<T*>(a.round_values) + base, 1, 1);
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

// ---- launches

const char* last_error() {
  const auto error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

constexpr int row_threads = 256;

unsigned row_blocks(std::int64_t threads) { return static_cast<unsigned>((threads + row_threads - 1) / row_threads); }

template <class T, int E, int M>
const char* attend(const LshArguments& a, bool forward, cudaStream_t stream) {
  const auto kernel = forward ? forward_kernel<T, E, M> : backward_kernel<T, E, M>;
  const int bytes = forward ? forward_bytes<T, E, M> : backward_bytes<T, E, M>;
  if (const auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
      error != cudaSuccess)
    return cudaGetErrorString(error);
  const dim3 grid(static_cast<unsigned>((a.rows + M - 1) / M), static_cast<unsigned>(a.rounds),
                  static_cast<unsigned>(a.batch * a.heads));
  const auto packs = a.batch * a.heads * a.rows * (a.width / 8);
  if (forward) {
    kernel<<<grid, M * 2, bytes, stream>>>(a);
    join_rounds_kernel<T><<<row_blocks(packs), row_threads, 0, stream>>>(a);
  } else {
    out_products_kernel<T><<<row_blocks(a.batch * a.heads * a.rows * 4), row_threads, 0, stream>>>(a);
    kernel<<<grid, M * 2, bytes, stream>>>(a);
    add_rounds_kernel<T><<<row_blocks(packs), row_threads, 0, stream>>>(a);
  }
  return last_error();
}

template <class T>
const char* attend(const LshArguments& a, bool forward, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  if (a.chunk == 64 && a.width == 64) return attend<T, 64, 64>(a, forward, on);
  if (a.chunk == 64 && a.width == 32) return attend<T, 32, 64>(a, forward, on);
  if (a.chunk == 64 && a.width == 128) return attend<T, 128, 64>(a, forward, on);
  if (a.chunk == 32 && a.width == 64) return attend<T, 64, 32>(a, forward, on);
  if (a.chunk == 32 && a.width == 32) return attend<T, 32, 32>(a, forward, on);
  if (a.chunk == 32 && a.width == 128) return attend<T, 128, 32>(a, forward, on);
  return "lsh: no kernel for this chunk and width";
}

const char* attend(const LshArguments& a, bool forward, void* stream) {
  if (a.element == Element::bfloat16) return attend<__nv_bfloat16>(a, forward, stream);
  if (a.element == Element::float16) return attend<__half>(a, forward, stream);
  return "lsh: no kernel for this element type";
}

template <class T>
const char* hash(const LshArguments& a, void* stream) {
  const dim3 grid(static_cast<unsigned>((a.rows + hash_threads - 1) / hash_threads), static_cast<unsigned>(a.rounds),
                  static_cast<unsigned>(a.batch * a.heads));
  const auto on = static_cast<cudaStream_t>(stream);
  if (a.width == 32) hash_kernel<T, 32><<<grid, hash_threads, 0, on>>>(a);
  else if (a.width == 64) hash_kernel<T, 64><<<grid, hash_threads, 0, on>>>(a);
  else if (a.width == 128) hash_kernel<T, 128><<<grid, hash_threads, 0, on>>>(a);
  else return "lsh: no hash kernel for this width";
  return last_error();
}

}  // namespace

bool lsh_hash_takes(std::int64_t width) { return width == 32 || width == 64 || width == 128; }

bool lsh_kernels_take(std::int64_t rows, std::int64_t width, std::int64_t rounds, std::int64_t chunk, std::int64_t buckets) {
  return lsh_hash_takes(width) && (chunk == 32 || chunk == 64) && rounds <= most_rounds && rows >= 1 &&
         (rows + chunk - 1) / chunk < 32768 && sort_bytes(buckets) <= 160 * 1024;
}

const char* lsh_hash_cuda(const LshArguments& a, void* stream) {
  switch (a.element) {
    case Element::float64: return hash<double>(a, stream);
    case Element::float32: return hash<float>(a, stream);
    case Element::float16: return hash<__half>(a, stream);
    case Element::bfloat16: return hash<__nv_bfloat16>(a, stream);
  }
  return "lsh: unknown element type";
}

const char* lsh_sort_cuda(const LshArguments& a, void* stream) {
  const int bytes = static_cast<int>(sort_bytes(a.buckets));
  if (const auto error = cudaFuncSetAttribute(sort_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
      error != cudaSuccess)
    return cudaGetErrorString(error);
  sort_kernel<<<static_cast<unsigned>(a.batch * a.heads * a.rounds), sort_warps * 32, bytes,
                static_cast<cudaStream_t>(stream)>>>(a);
  return last_error();
}

const char* lsh_forward_cuda(const LshArguments& a, void* stream) { return attend(a, true, stream); }

const char* lsh_backward_cuda(const LshArguments& a, void* stream) { return attend(a, false, stream); }

}  // namespace transpool

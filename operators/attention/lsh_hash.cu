#include "operators/attention/lsh_cuda.h"
#include "operators/attention/matrix_tiles.cuh"

namespace transpool {
namespace {

constexpr int hash_threads = 128;
constexpr int hash_planes = 32;  // of one load

/// The bucket by the largest magnitude among the products with the planes: that plane, and which side of it.
__device__ int side(float product, int plane, int half) { return product < 0 ? half + plane : plane; }

/// One thread a row of one head in one round, in float32: of each hash the product of the largest magnitude.
template <class T, int E>
__global__ void __launch_bounds__(hash_threads) hash_kernel(LshArguments a) {
  __shared__ float4 planes[hash_planes][E / 4];
  const int head = blockIdx.z % a.heads, batch = blockIdx.z / a.heads, round = blockIdx.y;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * hash_threads + threadIdx.x;
  const int halves[2] = {static_cast<int>(a.first_buckets / 2), static_cast<int>(a.second_buckets / 2)};
  const int all = halves[0] + halves[1];
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
  const float* source = a.planes + (static_cast<std::int64_t>(head) * a.rounds + round) * E * all;
  int bucket = 0;
  for (int part = 0, start = 0; part < 2; start += halves[part++]) {
    float best = 0;
    int chosen = 0;
    for (int first = 0; first < halves[part]; first += hash_planes) {
      __syncthreads();
      for (int i = threadIdx.x; i < hash_planes * E; i += hash_threads) {
        const int plane = i % hash_planes, feature = i / hash_planes;
        reinterpret_cast<float*>(planes[plane])[feature] =
            first + plane < halves[part] ? source[static_cast<std::int64_t>(feature) * all + start + first + plane] : 0.0f;
      }
      __syncthreads();
      const int count = halves[part] - first < hash_planes ? halves[part] - first : hash_planes;
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
        if (fabsf(product) > fabsf(best)) best = product, chosen = first + plane;
      }
    }
    if (halves[part] > 0) bucket = bucket * 2 * halves[part] + side(best, chosen, halves[part]);
  }
  if (row < a.rows) a.hashes[((static_cast<std::int64_t>(blockIdx.z)) * a.rounds + round) * a.rows + row] = bucket;
}

constexpr int slab = 64;  // planes of one load
constexpr int product_warps = 8;

/// The left factor of 16 rows of (n, E) from `first` on; zeros where there is no row.
template <class T, int E>
__device__ void read_left_rows(unsigned (&r)[E / 16][4], const T* source, std::int64_t stride, std::int64_t first,
                               std::int64_t rows) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < E / 16; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int64_t row = first + lane / 4 + i % 2 * 8;
      r[k][i] =
          row < rows ? *reinterpret_cast<const unsigned*>(source + row * stride + k * 16 + i / 2 * 8 + lane % 4 * 2) : 0u;
    }
}

/// Of two products the one of the larger magnitude; of equals the one of the earlier plane.
__device__ void keep_larger(float& best, int& chosen, float other, int plane) {
  if (fabsf(other) > fabsf(best) || (fabsf(other) == fabsf(best) && plane < chosen)) best = other, chosen = plane;
}

/// One warp 32 rows of one head in all rounds. Planes are numbers that T holds, so that products are exact and sums are in
/// float32, as they are where T is float32 itself.
template <class T, int E>
__global__ void __launch_bounds__(product_warps * 32) hash_product_kernel(LshArguments a) {
  __shared__ __align__(16) T planes[E * tile_stride<slab>];
  const int head = blockIdx.y % a.heads, batch = blockIdx.y / a.heads, lane = threadIdx.x % 32;
  const std::int64_t first_row = (static_cast<std::int64_t>(blockIdx.x) * product_warps + threadIdx.x / 32) * 32;
  const int halves[2] = {static_cast<int>(a.first_buckets / 2), static_cast<int>(a.second_buckets / 2)};
  const int all = halves[0] + halves[1];
  unsigned q[2][E / 16][4];
  const T* rows = static_cast<const T*>(a.q.data) + batch * a.q.batch_stride + head * a.q.head_stride;
#pragma unroll
  for (int m = 0; m < 2; ++m) read_left_rows<T, E>(q[m], rows, a.q.row_stride, first_row + m * 16, a.rows);
  for (int round = 0; round < a.rounds; ++round) {
    const float* source = a.planes + (static_cast<std::int64_t>(head) * a.rounds + round) * E * all;
    int bucket[4] = {};
    for (int part = 0, start = 0; part < 2; start += halves[part++]) {
      const int half = halves[part];
      float best[4] = {};
      int chosen[4] = {};
      for (int first = 0; first < half; first += slab) {
        const int count = half - first < slab ? half - first : slab;
        const int shift = count <= 16 ? 4 : count <= 32 ? 5 : 6;  // of a number of planes that is a power of two
        __syncthreads();
#pragma unroll 4
        for (int i = threadIdx.x; i < E << shift; i += product_warps * 32) {
          const int plane = i & ((1 << shift) - 1), feature = i >> shift;
          planes[feature * tile_stride<slab> + plane] = static_cast<T>(
              plane < count ? source[static_cast<std::int64_t>(feature) * all + start + first + plane] : 0.0f);
        }
        __syncthreads();
        for (int plane = 0; plane < count; plane += 16) {
          float products[2][2][4] = {};
#pragma unroll
          for (int k = 0; k < E / 16; ++k) {
            unsigned b[4];
            load_right<slab>(b, planes, k * 16, plane);
#pragma unroll
            for (int m = 0; m < 2; ++m) {
              Half<T>::multiply(products[m][0], q[m][k], b[0], b[1]);
              Half<T>::multiply(products[m][1], q[m][k], b[2], b[3]);
            }
          }
#pragma unroll
          for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
              for (int j = 0; j < 4; ++j) {
                const int row = m * 2 + j / 2;
                // A plane that is not there has the product zero, which replaces nothing.
                if (fabsf(products[m][i][j]) > fabsf(best[row]))
                  best[row] = products[m][i][j], chosen[row] = first + plane + i * 8 + lane % 4 * 2 + j % 2;
              }
        }
      }
      if (half == 0) continue;
#pragma unroll
      for (int row = 0; row < 4; ++row) {
#pragma unroll
        for (int step = 1; step < 4; step *= 2)
          keep_larger(best[row], chosen[row], __shfl_xor_sync(all_lanes, best[row], step),
                      __shfl_xor_sync(all_lanes, chosen[row], step));
        bucket[row] = bucket[row] * 2 * half + side(best[row], chosen[row], half);
      }
    }
#pragma unroll
    for (int row = 0; row < 4; ++row) {
      const std::int64_t place = first_row + row / 2 * 16 + row % 2 * 8 + lane / 4;
      if (lane % 4 == 0 && place < a.rows)
        a.hashes[(static_cast<std::int64_t>(blockIdx.y) * a.rounds + round) * a.rows + place] = bucket[row];
    }
  }
}

const char* last_error() {
  const auto error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <class T>
constexpr bool half_type = sizeof(T) == 2;

template <class T, int E>
const char* hash(const LshArguments& a, cudaStream_t stream) {
  const auto blocks = [&](std::int64_t rows) { return static_cast<unsigned>((a.rows + rows - 1) / rows); };
  const auto heads = static_cast<unsigned>(a.batch * a.heads);
  if constexpr (half_type<T>)
    hash_product_kernel<T, E><<<dim3(blocks(product_warps * 32), heads), product_warps * 32, 0, stream>>>(a);
  else hash_kernel<T, E><<<dim3(blocks(hash_threads), static_cast<unsigned>(a.rounds), heads), hash_threads, 0, stream>>>(a);
  return last_error();
}

template <class T>
const char* hash(const LshArguments& a, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  if (a.width == 32) return hash<T, 32>(a, on);
  if (a.width == 64) return hash<T, 64>(a, on);
  if (a.width == 128) return hash<T, 128>(a, on);
  return "lsh: no hash kernel for this width";
}

}  // namespace

bool lsh_hash_takes(std::int64_t width) { return width == 32 || width == 64 || width == 128; }

const char* lsh_hash_cuda(const LshArguments& a, void* stream) {
  switch (a.element) {
    case Element::float64: return hash<double>(a, stream);
    case Element::float32: return hash<float>(a, stream);
    case Element::float16: return hash<__half>(a, stream);
    case Element::bfloat16: return hash<__nv_bfloat16>(a, stream);
  }
  return "lsh: unknown element type";
}

}  // namespace transpool

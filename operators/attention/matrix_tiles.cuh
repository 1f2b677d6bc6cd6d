#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

/// Products of 16 x 16 blocks by tensor cores, out of tiles in shared memory.
namespace transpool {
namespace {

constexpr unsigned all_lanes = 0xffffffffu;

__device__ float as_float(double x) { return static_cast<float>(x); }
__device__ float as_float(float x) { return x; }
__device__ float as_float(__half x) { return __half2float(x); }
__device__ float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }

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

/// The left factor of 16 rows from `row` on, all E columns.
template <class T, int E>
__device__ void load_left_rows(unsigned (&r)[E / 16][4], const T* tile, int row) {
#pragma unroll
  for (int k = 0; k < E / 16; ++k) load_left<E>(r[k], tile, row, k * 16);
}

/// sum (16 x 16, as two of 16 x 8) = 16 rows, as a left factor, times rows of `right` from `other` on, transposed.
template <class T, int E>
__device__ void multiply_rows(float (&sum)[2][4], const unsigned (&left)[E / 16][4], const T* right, int other) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[i][j] = 0;
#pragma unroll
  for (int k = 0; k < E / 16; ++k) {
    unsigned b[4];
    load_right_rows<E>(b, right, other, k * 16);
    Half<T>::multiply(sum[0], left[k], b[0], b[1]);
    Half<T>::multiply(sum[1], left[k], b[2], b[3]);
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

}  // namespace
}  // namespace transpool

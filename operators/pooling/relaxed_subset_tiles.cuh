#pragma once

#include <cuda_runtime.h>

/// Products of 16 x 8 by 8 x 8 blocks over a warp, of float64 numbers or with the digits of float32.
namespace transpool {
namespace {

/// Numbers as factors. Tensor cores take eleven digits: a float32 number is the sum of two that have no more, and of the
/// products of two such sums the smallest is left out. Those of half types are exact as they are.
template <class S, int N>
struct Digits {
  double number[N];

  template <bool Exact>
  __device__ void set(int i, double value) {
    number[i] = value;
  }
};

template <int N>
struct Digits<float, N> {
  unsigned high[N], low[N];

  template <bool Exact>
  __device__ void set(int i, float value) {
    constexpr unsigned half_of_last = 0x1000u, kept = 0xffffe000u;
    const unsigned bits = __float_as_uint(value);
    high[i] = Exact ? bits : (bits + half_of_last) & kept;
    low[i] = Exact ? 0 : __float_as_uint(value - __uint_as_float(high[i]));
  }
};

__device__ inline void add_block_product(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void add_block_product(double (&sum)[4], const double (&a)[4], const double (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+d"(sum[0]), "+d"(sum[1]), "+d"(sum[2]), "+d"(sum[3])
      : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b[0]), "d"(b[1]));
}

/// sum += A B. Lane 4 g + t has a = A(g, t), A(g + 8, t), A(g, t + 4), A(g + 8, t + 4); b = B(t, g), B(t + 4, g); and
/// sum = (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1). Which of the factors are exact is known.
template <bool ExactA, bool ExactB>
__device__ void add_product(float (&sum)[4], const Digits<float, 4>& a, const Digits<float, 2>& b) {
  if constexpr (!ExactB) add_block_product(sum, a.high, b.low);
  if constexpr (!ExactA) add_block_product(sum, a.low, b.high);
  add_block_product(sum, a.high, b.high);
}

template <bool ExactA, bool ExactB>
__device__ void add_product(double (&sum)[4], const Digits<double, 4>& a, const Digits<double, 2>& b) {
  add_block_product(sum, a.number, b.number);
}

}  // namespace
}  // namespace transpool

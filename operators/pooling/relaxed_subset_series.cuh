#pragma once

#include "operators/pooling/relaxed_subset.cuh"
#include "operators/pooling/relaxed_subset_tiles.cuh"

#include <type_traits>

namespace transpool {
namespace {

/// Of S in 16 bytes.
template <class S>
constexpr int pack = 16 / sizeof(S);
/// Elements of a lane in a row, and of the eight lanes that share one.
template <class E>
constexpr int lane_columns = 16 / sizeof(E);
template <class E>
constexpr int warp_columns = 8 * lane_columns<E>;

/// Whether elements have no more digits than the eleven that tensor cores take.
template <class E>
constexpr bool is_exact = sizeof(E) == 2;
/// Whether eleven are enough for what they are multiplied by too. Terms of a series cancel each other, so that results have
/// two or three less.
template <class E>
constexpr bool is_brief = std::is_same_v<E, __nv_bfloat16>;

/// Rows of `width` elements of a batch row. Those from `valid` on may hold anything and count as 0.
template <class E, bool Aligned>
struct Rows {
  static constexpr int V = lane_columns<E>;
  const E* data;
  std::int64_t valid, width;

  __device__ RawPack<E, V> at(std::int64_t row, std::int64_t column) const {
    RawPack<E, V> result;
    if (row >= valid || column >= width) return result;
    const E* from = data + row * width + column;
    if constexpr (Aligned) {
      result.read(from);
    } else {
      Pack<E, V> pack = {};
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (column + v < width) pack.element[v] = from[v];
      result.read(pack.element);
    }
    return result;
  }
};

/// Rows that go with factors: those of x with the polynomials of their scores, or rounds with their coefficients.
template <class S>
struct RowFactors {
  const RelaxedSubsetArguments& a;
  std::int64_t b;
  bool rounds;

  __device__ std::int64_t count() const { return rounds ? a.rounds : a.length; }
  __device__ std::int64_t valid() const { return rounds ? a.rounds : valid_rows(a, b); }
  __device__ const S* coefficients_of(std::int64_t round) const {
    return static_cast<const S*>(a.coefficients) + (b * a.rounds + round) * nodes;
  }
  /// call(q, factor of the row) for q = 0, 1, ...; all 0 past the last row.
  template <int Q, class Call>
  __device__ void each(std::int64_t row, Call call) const {
    if (rounds) {
#pragma unroll
      for (int q = 0; q < Q; q += pack<S>) {
        Pack<S, pack<S>> own = {};
        if (row < a.rounds) own = *reinterpret_cast<const Pack<S, pack<S>>*>(coefficients_of(row) + q);
#pragma unroll
        for (int i = 0; i < pack<S>; ++i) call(q + i, own.element[i]);
      }
    } else {
      const auto place = column_of<S>(a, b, row);
      Polynomials<S> polynomials(place.element[0], place.element[1]);
#pragma unroll
      for (int q = 0; q < Q; ++q) call(q, polynomials.next());
    }
  }
};

template <class S, class E>
bool aligned(const RelaxedSubsetArguments& a, std::initializer_list<const void*> pointers) {
  bool all = a.width % lane_columns<E> == 0;
  for (const void* pointer : pointers) all = all && reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
  return all;
}

}  // namespace

/// What a pass over rows does: multiplies factors and series to rows, and rows and series to dots.
struct Spread {
  bool rounds;         // whose coefficients the factors are; else they are the polynomials of each row of x
  const void* series;  // (batch, nodes, stride) S
  const void* given;   // rows whose dots are wanted; null: none
  void* result;        // rows; null: none
  int spans = 1;       // blocks that share the columns; where dots are wanted there is one
};

/// Launches the pass; `beside`: from when on the last kernel on the stream allows it.
void spread_series(const RelaxedSubsetArguments& arguments, Spread pass, bool beside, void* stream);

}  // namespace transpool

#include "operators/pooling/semiseparable_mixture.cuh"

namespace transpool {
namespace {

/// The scan's columns of one rank: the scaled gradient of the values and, last, its product with them.
template <class C, int V>
struct FlowItem {
  C flow[V + 1], x[V], slope[V], above[V], decay;
};

/// Gradients of the top rows, and what those past the top take from all outputs.
template <class T, int V, bool two_sided, class Scans>
__global__ void __launch_bounds__(Scans::threads) flow_kernel(SemiseparableArguments a, int slabs) {
  using C = typename Accumulator<T>::type;
  using Item = FlowItem<C, V>;
  const Place p(a, slabs, V);
  const auto [first, last] = p.segment;
  const auto offset = p.b * a.slots * a.width + p.column;
  const auto source = p.b * a.length * a.width + p.column;
  const T *x = static_cast<const T*>(a.x) + source, *gradient = static_cast<const T*>(a.gradient) + offset;
  T* x_gradient = static_cast<T*>(a.x_gradient) + source;
  const C* mean = static_cast<const C*>(a.mean) + offset;
  const C* slope = two_sided ? static_cast<const C*>(a.slope) + offset : nullptr;
  C* kept = two_sided ? static_cast<C*>(a.flow) + offset : nullptr;
  const std::int32_t* top = a.top + p.b * a.slots;
  const C *decay = part_of<C>(a.decay, p.b, a.slots), *scale = part_of<C>(a.scale, p.b, a.slots);
  C* dots = static_cast<C*>(a.dots) + (p.b * slabs + p.slab) * a.slots;

  const auto load_flow = [&](int t, Item& item) {
    C own[V] = {}, value[V] = {};
    if (p.inside) {
      load_row<C>(gradient + t * a.width, own);
      load_row<C>(mean + t * a.width, value);
    }
    item.flow[V] = 0;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      item.flow[v] = own[v] * scale[t];
      item.flow[V] += item.flow[v] * value[v];
    }
  };
  const auto load_down = [&](int t, Item& item) {
    load_flow(t, item);
    item.decay = t > 0 ? decay[t - 1] : C(-1);
  };
  const auto load_up = [&](int t, Item& item) {
    load_flow(t, item);
    item.decay = decay[t];
  };
  const auto load_x = [&](int t, Item& item) {
    for (int v = 0; v < V; ++v) item.x[v] = item.slope[v] = item.above[v] = 0;
    if (!p.inside) return;
    load_row<C>(x + std::int64_t{top[t]} * a.width, item.x);
  };

  Scan<C, V + 1> scan, nothing;
  nothing.clear();
  scan.clear();
  walk<Item, Scans::loads>(first, last, false, load_down, [&](int, const Item& item) {
    scan.step(item.decay);
    scan.add(item.flow);
  });
  scan = start_of_segment<Scans::warps>(scan, nothing, /*upward=*/false);
  walk<Item, Scans::loads>(
      first, last, false,
      [&](int t, Item& item) {
        load_down(t, item);
        load_x(t, item);
        if (two_sided && p.inside) load_row<C>(slope + t * a.width, item.slope);
      },
      [&](int t, const Item& item) {
        scan.step(item.decay);
        scan.add(item.flow);
        C all[V], dot = two_sided ? -scan.passed[V] : -(scan.passed[V] + scan.level[V]);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          all[v] = scan.passed[v] + scan.level[v];
          dot += item.x[v] * (two_sided ? scan.passed[v] : all[v]);
          if (two_sided) dot -= item.flow[v] * item.slope[v];
        }
        dot = sum_over_warp(dot);
        if (p.lane == 0) dots[t] = dot;
        if (!p.inside) return;
        if (two_sided) store_row(kept + t * a.width, all);
        else store_row(x_gradient + std::int64_t{top[t]} * a.width, all);
      });
  if (p.warp == p.warps - 1) {
    C all[V], passed[V];
    for (int v = 0; v < V; ++v) {
      passed[v] = scan.passed[v];
      all[v] = scan.passed[v] + scan.level[v];
    }
    const C all_dot = sum_over_warp(scan.passed[V] + scan.level[V]), passed_dot = sum_over_warp(scan.passed[V]);
    C* last_dot = static_cast<C*>(a.last_dot) + (p.b * slabs + p.slab) * 2;
    if (p.lane == 0) {
      last_dot[0] = all_dot;
      last_dot[1] = passed_dot;
    }
    C* last_flow = static_cast<C*>(a.last_flow) + p.b * 2 * a.width + p.column;
    if (p.inside) {
      store_row(last_flow, all);
      store_row(last_flow + a.width, passed);
    }
  }
  if constexpr (two_sided) {
    scan.clear();
    walk<Item, Scans::loads>(first, last, true, load_up, [&](int, const Item& item) {
      scan.step(item.decay);
      scan.add(item.flow);
    });
    scan = start_of_segment<Scans::warps>(scan, nothing, /*upward=*/true);
    walk<Item, Scans::loads>(
        first, last, true,
        [&](int t, Item& item) {
          load_up(t, item);
          load_x(t, item);
          if (p.inside) load_row<C>(kept + t * a.width, item.above);
        },
        [&](int t, const Item& item) {
          scan.step(item.decay);
          C all[V], dot = scan.passed[V];
#pragma unroll
          for (int v = 0; v < V; ++v) {
            all[v] = item.above[v] + scan.passed[v] + scan.level[v];
            dot -= item.x[v] * scan.passed[v];
          }
          scan.add(item.flow);
          dot = sum_over_warp(dot);
          if (p.lane == 0) dots[t] += dot;
          if (p.inside) store_row(x_gradient + std::int64_t{top[t]} * a.width, all);
        });
  }
}

constexpr int rows_a_warp = 4;

/// Gradients of the rows past the top, and the scores' gradients of all. One warp works on a few rows at a time.
template <class T, int V>
__global__ void __launch_bounds__(rest_threads) rest_gradient_kernel(SemiseparableArguments a, int slabs) {
  using C = typename Accumulator<T>::type;
  const int lane = threadIdx.x % lanes, width = static_cast<int>(a.width);
  const std::int64_t warps_a_row = (a.length + rows_a_warp - 1) / rows_a_warp;
  const std::int64_t warp = (blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x) / lanes;
  const std::int64_t b = warp / warps_a_row;
  if (b >= a.batch) return;
  const int first = static_cast<int>(warp % warps_a_row) * rows_a_warp, count = outputs(a, b);
  const C* clean = part_of<C>(a.clean, b, a.length);
  const C lowest = count > 0 ? clean[a.top[b * a.slots + count - 1]] : C(0), sharpness = static_cast<C>(a.sharpness);
  const C* flow = static_cast<const C*>(a.last_flow) + b * 2 * a.width;

  int rank[rows_a_warp];
  C weight[rows_a_warp], dot[rows_a_warp];
  bool level[rows_a_warp];
#pragma unroll
  for (int i = 0; i < rows_a_warp; ++i) {
    const int j = first + i;
    rank[i] = j < a.length ? a.rank[b * a.length + j] : 0;
    weight[i] = rank[i] == -1 && count > 0 ? exponential(-sharpness * (lowest - clean[j])) : C(0);
    level[i] = a.two_sided && weight[i] != 0 && clean[j] == lowest;
    dot[i] = 0;
  }
  for (int column = lane * V; column < width; column += lanes * V) {
    C all[V] = {};
    if (count > 0) {
#pragma unroll
      for (int v = 0; v < V; ++v) all[v] = flow[column + v];
    }
    Pack<T, V> rows[rows_a_warp];
    const auto offset = (b * a.length + first) * a.width + column;
#pragma unroll
    for (int i = 0; i < rows_a_warp; ++i)
      if (weight[i] != 0)
        rows[i] = *reinterpret_cast<const Pack<T, V>*>(static_cast<const T*>(a.x) + offset + std::int64_t{i} * width);
#pragma unroll
    for (int i = 0; i < rows_a_warp; ++i) {
      if (rank[i] >= 0) continue;
      C gradient[V];
#pragma unroll
      for (int v = 0; v < V; ++v) gradient[v] = weight[i] != 0 ? weight[i] * all[v] : C(0);
      if (weight[i] != 0) {
#pragma unroll
        for (int v = 0; v < V; ++v)
          dot[i] += static_cast<C>(rows[i].element[v]) * (level[i] ? flow[width + column + v] : all[v]);
      }
      store_row(static_cast<T*>(a.x_gradient) + offset + std::int64_t{i} * width, gradient);
    }
  }
#pragma unroll
  for (int i = 0; i < rows_a_warp; ++i) {
    const int j = first + i;
    if (j >= a.length) continue;
    C gain = 0;
    if (rank[i] >= 0)
      for (int slab = lane; slab < slabs; slab += lanes)
        gain += static_cast<const C*>(a.dots)[(b * slabs + slab) * a.slots + rank[i]];
    else if (weight[i] != 0) {
      gain = dot[i];
      for (int slab = lane; slab < slabs; slab += lanes)
        gain -= static_cast<const C*>(a.last_dot)[(b * slabs + slab) * 2 + (level[i] ? 1 : 0)];
      gain *= weight[i];
    }
    gain = sum_over_warp(gain) * sharpness;
    if (lane != 0) continue;
    const C given = static_cast<const C*>(a.scores)[b * a.length + j], bound = static_cast<C>(a.bound);
    part_of<C>(a.score_gradient, b, a.length)[j] = given >= -bound && given <= bound ? gain : C(0);
  }
}

}  // namespace

std::int64_t semiseparable_slabs(std::int64_t width) { return (width + lanes - 1) / lanes; }

const char* semiseparable_backward_cuda(const SemiseparableArguments& a, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  return by_rows(a, [&]<class T, int V, int Wide, bool two_sided>(int slabs) {
    const auto blocks = static_cast<unsigned>(a.batch * slabs);
    flow_kernel<T, V, two_sided, Many><<<blocks, Many::threads, 0, cuda_stream>>>(a, slabs);
    const auto warps = a.batch * ((a.length + rows_a_warp - 1) / rows_a_warp);
    const auto rest_blocks = static_cast<unsigned>((warps * lanes + rest_threads - 1) / rest_threads);
    rest_gradient_kernel<T, Wide><<<rest_blocks, rest_threads, 0, cuda_stream>>>(a, slabs);
  });
}

}  // namespace transpool

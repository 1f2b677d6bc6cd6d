#pragma once

#include "operators/pooling/launching.cuh"
#include "operators/pooling/relaxed_subset_cuda.h"
#include "operators/pooling/row_access.cuh"
#include "operators/pooling/warp.cuh"

namespace transpool {
namespace {

constexpr int nodes = relaxed_subset_nodes;
constexpr int frame_size = relaxed_subset_frame + 2 * nodes;
constexpr double floor_logit = -1e300;

/// What the polynomials of a column start from: its place in the interval and their factor. Past the length the factor is 0.
template <class S>
__device__ Pack<S, 2> column_of(const RelaxedSubsetArguments& a, std::int64_t b, std::int64_t j) {
  if (j < a.length) return static_cast<const Pack<S, 2>*>(a.columns)[b * a.length + j];
  return {};
}

/// Rows of a batch row that are valid: the first ones.
__device__ inline std::int64_t valid_rows(const RelaxedSubsetArguments& a, std::int64_t b) {
  return static_cast<std::int64_t>(a.frame[b * frame_size + 4]);
}

/// The interval of a batch row's scores, which the polynomials see as [-1, 1], and the highest.
struct Frame {
  double centre, half, highest, power;

  __device__ Frame(const RelaxedSubsetArguments& a, std::int64_t b) {
    const double* kept = a.frame + b * frame_size;
    centre = kept[0];
    half = kept[1];
    highest = kept[2];
    power = 1 / a.temperature;
  }
  __device__ Frame(double lowest, double most, double temperature)
      : centre((lowest + most) / 2),
        half(fmax((most - lowest) / 2, temperature / 4)),
        highest(most),
        power(1 / temperature) {}

  __device__ double place(double a) const { return fmax((a - centre) / half, -1.0); }
  /// e^((a - highest) / temperature), 0 in padded columns.
  __device__ double height(double a) const { return a > floor_logit ? exp((a - highest) * power) : 0.0; }
};

/// `factor` times the Chebyshev polynomials of the first kind at x, one after the other.
template <class C>
class Polynomials {
 public:
  __device__ Polynomials(C x, C factor) : twice_(2 * x), now_(factor), after_(x * factor) {}
  __device__ C next() {
    const C given = now_;
    now_ = after_;
    after_ = twice_ * now_ - given;
    return given;
  }

 private:
  C twice_, now_, after_;
};

/// Their derivatives, which are those of the second kind.
class Slopes {
 public:
  __device__ Slopes(double x, double factor) : twice_(2 * x), after_(factor) {}
  __device__ double next() {
    const double given = order_ * now_, last = now_;
    now_ = after_;
    after_ = twice_ * now_ - last;
    order_ += 1;
    return given;
  }

 private:
  double twice_, now_ = 0, after_, order_ = 0;
};

/// What all columns share in a round that takes them one by one.
struct Lead {
  double first, log_all, log_rest, temperature;

  __device__ Lead(const RelaxedSubsetArguments& a, std::int64_t b, std::int64_t round) : temperature(a.temperature) {
    const auto rows = a.batch * a.rounds, place = b * a.rounds + round;
    first = a.leads[place];
    log_all = a.leads[rows + place];
    log_rest = a.leads[2 * rows + place];
  }
  __device__ Lead(double first, double log_all, double log_rest, double temperature)
      : first(first), log_all(log_all), log_rest(log_rest), temperature(temperature) {}

  __device__ double logit(double a) const { return fmax((a - first) / temperature, floor_logit); }
  __device__ double log_weight(double a) const { return fmax(logit(a) - log_all, -1e30); }
  /// Only the leader can have more than half the weight: it is left what all others have.
  __device__ double after(double a, double weight) const {
    return fmax(a + (weight > 0.5 ? log_rest : log1p(-fmin(weight, 0.5))), floor_logit);
  }
};

/// Coefficients that a batch row's series are taken with: none where its columns are taken one by one.
constexpr int few_terms = 16;
__device__ inline int terms_of(int degree) { return degree <= 0 ? 0 : degree <= few_terms ? few_terms : nodes; }

/// Whether any batch row's columns are taken one by one. By all threads of a block.
__device__ inline bool any_by_column(const RelaxedSubsetArguments& a) {
  bool any = false;
  for (auto b = static_cast<std::int64_t>(threadIdx.x); b < a.batch; b += blockDim.x) any = any || a.degree[b] == 0;
  return __syncthreads_or(any);
}

/// call<S, E>() for the type of the sums and that of the elements.
template <class Call>
void by_element(Element element, Call call) {
  switch (element) {
    case Element::float64: call.template operator()<double, double>(); break;
    case Element::float32: call.template operator()<float, float>(); break;
    case Element::float16: call.template operator()<float, __half>(); break;
    case Element::bfloat16: call.template operator()<float, __nv_bfloat16>(); break;
  }
}

/// Lets the kernel that is launched beside this one begin.
__device__ inline void let_next_begin() { asm volatile("griddepcontrol.launch_dependents;"); }

/// Of the kernel that runs beside the last one: it ends no sooner than that, so that what comes next waits for both. One
/// block that waits is enough, and it is the last one that starts.
__device__ inline void end_after_previous() {
  if (blockIdx.x + 1 == gridDim.x && blockIdx.y + 1 == gridDim.y && blockIdx.z + 1 == gridDim.z)
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

/// `beside`: from when on the last kernel allows it. It must not touch what that one writes, nor write what that one reads.
template <class... Parameters, class... Given>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, bool beside, void* stream, const Given&... given) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = beside ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(given)...);
}

}  // namespace
}  // namespace transpool

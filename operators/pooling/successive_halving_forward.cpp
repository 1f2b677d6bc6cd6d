#ifdef TRANSPOOL_CUDA
#include "operators/pooling/successive_halving_forward.h"

#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

namespace transpool {
namespace {

const char* forward_in_groups(const SuccessiveHalvingArguments& a, std::int64_t group) {
  const auto stream = c10::cuda::getCurrentCUDAStream(), beside = c10::cuda::getStreamFromPool();
  const char* error = nullptr;
  for (std::int64_t first = 0; first < a.batch && !error; first += group) {
    const auto rows = batch_rows(a, first, std::min(group, a.batch - first));
    error = successive_halving_tournament_cuda(rows, stream.stream());
    if (error) break;
    at::cuda::CUDAEvent played;
    played.record(stream);
    played.block(beside);
    error = successive_halving_gather_cuda(rows, /*right_behind=*/false, beside.stream());
  }
  // Whatever happened: a stream that is being captured has to come back from where it went.
  at::cuda::CUDAEvent gathered;
  gathered.record(beside);
  gathered.block(stream);
  return error;
}

}  // namespace

void successive_halving_forward(const SuccessiveHalvingArguments& a, const char* name) {
  const auto group = tournament_rows(a);
  const auto stream = c10::cuda::getCurrentCUDAStream().stream();
  const char* error = nullptr;
  if (group < a.batch) {
    error = forward_in_groups(a, group);
  } else {
    error = successive_halving_tournament_cuda(a, stream);
    if (!error) error = successive_halving_gather_cuda(a, /*right_behind=*/true, stream);
  }
  TORCH_CHECK(error == nullptr, name, ": ", error);
}

}  // namespace transpool
#endif

#include "operators/pooling/successive_halving_tournament.cuh"

#include <algorithm>

namespace transpool {

std::int64_t longest_tournament_cuda() { return std::max(longest_block_tournament(), longest_cluster_tournament()); }

std::int64_t steps_workspace(std::int64_t slots, int rounds) { return slots << rounds; }

std::int64_t leaf_bytes(Element element) { return element == Element::float64 ? sizeof(Leaf<double>) : sizeof(Leaf<float>); }

const char* successive_halving_tournament_cuda(const SuccessiveHalvingArguments& a, void* stream) {
  if (a.batch * a.slots == 0) return nullptr;
  const bool fits = a.slots << a.rounds <= longest_block_tournament();
  const auto error = (fits ? block_tournament : cluster_tournament)(a, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace transpool

#include "operators/pooling/successive_halving_tournament.cuh"

namespace transpool {
namespace {

struct Form {
  std::int64_t (*workspace)(const SuccessiveHalvingArguments& arguments);
  cudaError_t (*tournament)(const SuccessiveHalvingArguments& arguments, cudaStream_t stream);
};

Form form_of(const SuccessiveHalvingArguments& a) {
  const auto padded = a.slots << a.rounds;
  if (padded <= longest_block_tournament()) return {block_workspace, block_tournament};
  if (padded <= longest_cluster_tournament()) return {cluster_workspace, cluster_tournament};
  return {global_workspace, global_tournament};
}

}  // namespace

std::int64_t longest_tournament_cuda() { return longest_global_tournament(); }

std::int64_t tournament_workspace(const SuccessiveHalvingArguments& a) { return form_of(a).workspace(a); }

std::int64_t leaf_bytes(Element element) { return element == Element::float64 ? sizeof(Leaf<double>) : sizeof(Leaf<float>); }

const char* successive_halving_tournament_cuda(const SuccessiveHalvingArguments& a, void* stream) {
  if (a.batch * a.slots == 0) return nullptr;
  const auto error = form_of(a).tournament(a, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace transpool

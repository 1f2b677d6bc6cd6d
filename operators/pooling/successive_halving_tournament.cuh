#pragma once

#include "operators/pooling/successive_halving.cuh"

namespace transpool {

using Key = unsigned long long;

/// One step of a player's way through its tournament: the pair it is in and what part of that pair it makes up.
struct alignas(16) TournamentStep {
  double part = 0;
  std::int32_t next = 0;    ///< 2 * pair, plus 1 for the weaker
  std::int32_t leader = 0;  ///< of the pair
};

/// The two that met in the first round.
template <class Weight>
struct alignas(16) LeafPair {
  Leaf<Weight> stronger, weaker;
};

/// A number that rises with the value. Both zeros are one.
__device__ inline unsigned rising_bits(float value) {
  const unsigned bits = __float_as_uint(value + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ inline int valid_rows(const SuccessiveHalvingArguments& a, std::int64_t batch) {
  const auto valid = a.lengths ? a.lengths[batch] : a.length;
  return static_cast<int>(max(std::int64_t{0}, min(valid, a.length)));
}

/// A launch of a cluster of `blocks` blocks for each batch row.
struct ClusterLaunch {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute cluster = {};

  ClusterLaunch(std::int64_t batch, int blocks, int threads, std::size_t bytes, cudaStream_t stream) {
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(blocks);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    config.gridDim = dim3(static_cast<unsigned>(batch * blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = bytes;
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = 1;
  }
};

/// The forms of the tournament, for rows of so many padded players: those that the shared memory of one block holds, longer
/// ones that a cluster's holds, and such as stay in global memory. Each says which workspace it needs, in bytes.
std::int64_t longest_block_tournament();
std::int64_t longest_cluster_tournament();
std::int64_t longest_global_tournament();
std::int64_t block_workspace(const SuccessiveHalvingArguments& arguments);
std::int64_t cluster_workspace(const SuccessiveHalvingArguments& arguments);
std::int64_t global_workspace(const SuccessiveHalvingArguments& arguments);
cudaError_t block_tournament(const SuccessiveHalvingArguments& arguments, cudaStream_t stream);
cudaError_t cluster_tournament(const SuccessiveHalvingArguments& arguments, cudaStream_t stream);
cudaError_t global_tournament(const SuccessiveHalvingArguments& arguments, cudaStream_t stream);

}  // namespace transpool

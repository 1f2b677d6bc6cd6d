#pragma once

#include "operators/pooling/successive_halving.cuh"

namespace transpool {

using Key = unsigned long long;

/// The two that met in the first round.
template <class Weight>
struct alignas(16) LeafPair {
  Leaf<Weight> stronger, weaker;
};

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

/// The tournament of rows that the shared memory of one block holds, and of longer ones that a cluster's holds.
std::int64_t longest_block_tournament();
std::int64_t longest_cluster_tournament();
cudaError_t block_tournament(const SuccessiveHalvingArguments& arguments, cudaStream_t stream);
cudaError_t cluster_tournament(const SuccessiveHalvingArguments& arguments, cudaStream_t stream);

}  // namespace transpool

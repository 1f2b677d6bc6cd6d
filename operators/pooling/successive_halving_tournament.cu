#include "operators/pooling/successive_halving_tournament.cuh"

#include <algorithm>

namespace transpool {
namespace {

struct Form {
  std::int64_t (*workspace)(const SuccessiveHalvingArguments& arguments);
  cudaError_t (*tournament)(const SuccessiveHalvingArguments& arguments, cudaStream_t stream);
};

bool in_a_cluster(const SuccessiveHalvingArguments& a) {
  const auto padded = a.slots << a.rounds;
  return padded > longest_block_tournament() && padded <= longest_cluster_tournament();
}

Form form_of(const SuccessiveHalvingArguments& a) {
  if (in_a_cluster(a)) return {cluster_workspace, cluster_tournament};
  if (a.slots << a.rounds <= longest_block_tournament()) return {block_workspace, block_tournament};
  return {global_workspace, global_tournament};
}

template <class T>
T* later(T* pointer, std::int64_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(pointer) + static_cast<std::uintptr_t>(bytes));
}

std::int64_t parts(std::int64_t all, std::int64_t each) { return (all + each - 1) / each; }

}  // namespace

std::int64_t longest_tournament_cuda() { return longest_global_tournament(); }

std::int64_t tournament_rows(const SuccessiveHalvingArguments& a) {
  // Rows left out are read by no one, and then the gather takes too little time to hide anything behind.
  if (!in_a_cluster(a) || a.epsilon > 0) return a.batch;
  const auto [at_once, group] = cluster_rows(a);
  // Seconds of an H200: a cluster's tournament takes as long whether others run or not.
  const auto all = static_cast<double>(a.batch);
  const double play = 1.8e-9 * static_cast<double>(a.slots << a.rounds);
  const double read = static_cast<double>(a.length * a.width * element_bytes(a.element)) / 4e12;
  const double in_turn = static_cast<double>(parts(a.batch, at_once)) * play + all * read;
  const double beside =
      std::max(static_cast<double>(parts(a.batch, group)) * play + static_cast<double>(group) * read, play + all * read);
  return beside < in_turn ? std::min(group, a.batch) : a.batch;
}

std::int64_t tournament_workspace(const SuccessiveHalvingArguments& a) {
  auto group = a;
  group.batch = tournament_rows(a);
  return form_of(group).workspace(group);
}

SuccessiveHalvingArguments batch_rows(const SuccessiveHalvingArguments& all, std::int64_t first, std::int64_t count) {
  auto a = all;
  const auto advance = [first](auto& pointer, std::int64_t bytes_a_row) {
    if (pointer) pointer = later(pointer, first * bytes_a_row);
  };
  const std::int64_t element = element_bytes(a.element), score = a.float64_scores ? 8 : 4;
  a.batch = count;
  advance(a.x, a.length * a.width * element);
  advance(a.scores, a.length * score);
  advance(a.lengths, sizeof(std::int64_t));
  advance(a.leaves, (a.slots << a.rounds) * leaf_bytes(a.element));
  advance(a.values, a.slots * a.width * element);
  advance(a.slot_scores, a.slots * score);
  advance(a.positions, a.slots * static_cast<std::int64_t>(sizeof(std::int64_t)));
  return a;
}

std::int64_t leaf_bytes(Element element) { return element == Element::float64 ? sizeof(Leaf<double>) : sizeof(Leaf<float>); }

const char* successive_halving_tournament_cuda(const SuccessiveHalvingArguments& a, void* stream) {
  if (a.batch * a.slots == 0) return nullptr;
  const auto error = form_of(a).tournament(a, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace transpool

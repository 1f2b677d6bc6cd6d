#pragma once

#include <cstdint>

namespace transpool {

/// How a chunk of rows [s, e) is cut into segments of queries and keys that flash attention pairs, where u of its rows are
/// valid. Flash wants queries and keys each covered in order, so what is left out is paired with nothing.
enum class Segments {
  whole,    ///< all queries, all keys
  keys,     ///< all queries with the valid keys
  aligned,  ///< valid queries with valid keys
  padded,   ///< the other queries with valid keys
  window,   ///< the valid rows from the g-th on among themselves
  global,   ///< the queries from the g-th on with the valid keys among the first g; keys are these g alone
  suffix,   ///< all queries with the keys whose distance before the end of the valid rows is in [g, length)
};

/// Segments that one chunk is cut into.
constexpr int segment_count(Segments form) {
  switch (form) {
    case Segments::whole: return 1;
    case Segments::keys:
    case Segments::suffix: return 2;
    case Segments::aligned:
    case Segments::padded:
    case Segments::global: return 3;
    case Segments::window: return 5;
  }
  return 0;
}

struct SegmentArguments {
  const std::int64_t* lengths = nullptr;  ///< (sequences / repeat); nullptr: all rows are valid
  std::int64_t sequences = 0, repeat = 1;
  std::int64_t n = 0, chunk = 0;  ///< rows of a sequence and of a chunk
  std::int64_t key_rows = 0;      ///< keys of a sequence
  std::int64_t global = 0;
  Segments form = Segments::whole;
  int* query_starts = nullptr;  ///< segments + 1
  int* key_starts = nullptr;    ///< segments + 1
};

/// Two attentions over disjoint keys, joined in place of the first: values (rows, heads, width) of a half type, log-sum-exps
/// (heads, rows), which are +inf where a row saw no key.
struct JoinArguments {
  void* out = nullptr;
  const float* normaliser = nullptr;
  const void* other = nullptr;
  const float* other_normaliser = nullptr;
  float* joint_normaliser = nullptr;            ///< written; not `normaliser` itself
  std::int64_t rows = 0, heads = 0, width = 0;  ///< width a multiple of 8
  bool bfloat16 = true;
};

/// Launch on `stream` (a cudaStream_t). Return a CUDA error text, or nullptr.
const char* write_segments_cuda(const SegmentArguments& arguments, void* stream);
const char* join_attentions_cuda(const JoinArguments& arguments, void* stream);

}  // namespace transpool

#pragma once

#include <cstdint>

namespace transpool {

/// Device pointers and sizes of one selection of the `slots` highest of `length` scored rows. NaN ranks as -inf, both zeros
/// are one, ties go to the lower position, rows past the length are never kept.
struct RowSelectionArguments {
  const void* scores = nullptr;           ///< (batch, length), float32 or float64
  const std::int64_t* lengths = nullptr;  ///< (batch); null: all rows are valid
  std::int64_t batch = 0, length = 0, slots = 0;
  bool float64_scores = false;
  bool keep_order = true;             ///< source order, else by falling score: at most `most_sorted_rows_cuda` slots then
  std::int64_t* positions = nullptr;  ///< (batch, slots); -1 past min(slots, length), always last
  void* kept = nullptr;               ///< (batch, slots), dtype of the scores, NaN as -inf; 0 where the position is -1
  double* gates = nullptr;            ///< (batch, slots); null: not wanted. Kept scores with infinities as 1 and 0
};

inline constexpr std::int64_t most_sorted_rows_cuda = 8192;
inline constexpr std::int64_t longest_selection_cuda = std::int64_t{1} << 30;

/// Launches on `stream` (a cudaStream_t). Returns a CUDA error text, or nullptr.
const char* select_rows_cuda(const RowSelectionArguments& arguments, void* stream);

}  // namespace transpool

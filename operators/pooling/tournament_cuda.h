#pragma once

#include <cstdint>

namespace transpool {

/// Device pointers and sizes of one tournament over `batch` rows of `length` scores, padded to slots * 2^rounds. A round's
/// pairs, and its players, are stored behind those of the rounds before: pairs = padded - slots of them a batch row, and
/// 2 * pairs players.
struct TournamentArguments {
  const void* scores = nullptr;           ///< (batch, length), float32 or float64, any value
  const std::int64_t* lengths = nullptr;  ///< (batch); null: all rows are valid
  std::int64_t batch = 0, length = 0, slots = 0;
  int rounds = 0;
  bool float64_scores = false;
  double base = 20;
  bool mirror = true, keep_order = true;

  std::int32_t* stronger = nullptr;  ///< (batch, pairs) players of the pair, as places among the players of its round
  std::int32_t* weaker = nullptr;    ///< (batch, pairs)
  double* share = nullptr;           ///< (batch, pairs) what the stronger keeps
  double* stronger_score = nullptr;  ///< (batch, pairs)
  double* weaker_score = nullptr;    ///< (batch, pairs)
  std::int32_t* next = nullptr;      ///< (batch, 2 * pairs) workspace: the pair a player is in, and whether it is the weaker
  double* factor = nullptr;          ///< (batch, 2 * pairs) workspace: the part of the pair that the player makes up

  std::int64_t* rows = nullptr;       ///< (batch, slots, 2^rounds)
  double* weights = nullptr;          ///< (batch, slots, 2^rounds)
  double* slot_scores = nullptr;      ///< (batch, slots)
  std::int64_t* positions = nullptr;  ///< (batch, slots)

  const double* weight_gradient = nullptr;  ///< (batch, slots, 2^rounds); backward only, as all below
  const double* slot_gradient = nullptr;    ///< (batch, slots)
  double* gain = nullptr;                   ///< (batch, 2 * pairs + slots) workspace
  double* node_weight = nullptr;            ///< (batch, 2 * pairs + slots) workspace
  double* difference = nullptr;             ///< (batch, pairs) workspace
  void* score_gradient = nullptr;           ///< (batch, length), dtype of the scores
};

/// The longest padded row that the kernels take.
std::int64_t longest_tournament_cuda();

/// Launch on `stream` (a cudaStream_t). Return a CUDA error text, or nullptr.
const char* tournament_forward_cuda(const TournamentArguments& arguments, void* stream);
const char* tournament_backward_cuda(const TournamentArguments& arguments, void* stream);

}  // namespace transpool

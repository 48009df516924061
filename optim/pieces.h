#pragma once
// How work on flat buffers is cut.

#include <cstdint>

namespace lacuna {

/// Elements [begin, begin + count) of the flat buffers, inside one parameter. Work is cut into pieces of at most
/// kPieceSize elements, so its order is a fact of the model and not of the threads.
struct Piece {
  int64_t begin = 0, count = 0;
  bool decays = false;  // weight decay acts on it
};
inline constexpr int64_t kPieceSize = 32768;

}  // namespace lacuna

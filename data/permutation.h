#pragma once
// Random order without a table.

#include <cstdint>

#include "core/rng.h"

namespace lacuna {

/// A permutation of [0, size) chosen by (seed, epoch): a Feistel network over Philox, walked until it falls in range.
/// O(1) memory and time, so any step of a run finds its sequences without replaying the ones before.
/// Throws Error unless 1 <= size <= 2^62 and epoch >= 0.
class KeyedPermutation {
 public:
  static constexpr int kRounds = 8;

  KeyedPermutation(int64_t size, uint64_t seed, int64_t epoch);

  /// Where `index` goes. Throws Error when it is not in [0, size).
  int64_t operator()(int64_t index) const;

 private:
  uint64_t encrypt(uint64_t x) const;  // permutes [0, 4^half_bits_)

  int64_t size_;
  int64_t epoch_;
  int half_bits_;
  Rng rng_;
};

}  // namespace lacuna

#include "data/permutation.h"

#include <algorithm>
#include <bit>

#include "core/error.h"

namespace lacuna {
namespace {

constexpr int kMinHalfBits = 4;

}  // namespace

// Draws of purpose data_order: step = epoch, op = round, group = the half that the round mixes in. Ops from kRounds on
// are free for others.
KeyedPermutation::KeyedPermutation(int64_t size, uint64_t seed, int64_t epoch)
    : size_(size), epoch_(epoch), half_bits_(0), rng_(seed, RandomPurpose::data_order) {
  check(size >= 1 && size <= int64_t{1} << 62, "KeyedPermutation: size must be in [1, 2^62], got ", size);
  check(epoch >= 0, "KeyedPermutation: epoch must be >= 0, got ", epoch);
  // The least h with size <= 4^h, but domains of 16 and fewer have orders that no number of rounds reaches evenly.
  half_bits_ = std::max(kMinHalfBits, (static_cast<int>(std::bit_width(static_cast<uint64_t>(size - 1))) + 1) / 2);
}

uint64_t KeyedPermutation::encrypt(uint64_t x) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = x >> half_bits_, right = x & mask;
  for (int round = 0; round < kRounds; ++round) {
    const Philox::Block mixed = rng_.bits({.step = epoch_, .op = round}, static_cast<int64_t>(right));
    const uint64_t next = left ^ (mixed.word[0] & mask);
    left = right;
    right = next;
  }
  return left << half_bits_ | right;
}

int64_t KeyedPermutation::operator()(int64_t index) const {
  check(index >= 0 && index < size_, "KeyedPermutation: index must be in [0, ", size_, "), got ", index);
  // Following the cycle of `index` until it is back in range keeps a bijection. The domain is less than 4 * size (but
  // for the smallest sizes), so a walk takes fewer than 4 turns on average.
  auto x = static_cast<uint64_t>(index);
  do x = encrypt(x);
  while (x >= static_cast<uint64_t>(size_));
  return static_cast<int64_t>(x);
}

}  // namespace lacuna

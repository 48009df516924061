#include "data/permutation.h"

#include <doctest/doctest.h>
#include <rapidcheck.h>

#include <map>
#include <vector>

#include "tests/data/messages.h"

namespace lacuna {
namespace {

bool is_bijection(int64_t size, uint64_t seed, int64_t epoch) {
  const KeyedPermutation permutation(size, seed, epoch);
  std::vector<bool> seen(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    const int64_t to = permutation(i);
    if (to < 0 || to >= size || seen[static_cast<size_t>(to)]) return false;
    seen[static_cast<size_t>(to)] = true;
  }
  return true;
}

std::vector<int64_t> table(int64_t size, uint64_t seed, int64_t epoch) {
  const KeyedPermutation permutation(size, seed, epoch);
  std::vector<int64_t> result;
  for (int64_t i = 0; i < size; ++i) result.push_back(permutation(i));
  return result;
}

}  // namespace

TEST_CASE("KeyedPermutation: a bijection for every size from 1 to 1000") {
  for (int64_t size = 1; size <= 1000; ++size) REQUIRE_MESSAGE(is_bijection(size, 7, 0), "size ", size);
}

TEST_CASE("KeyedPermutation: a bijection for random sizes, seeds and epochs") {
  CHECK(rc::check([] {
    const auto size = *rc::gen::inRange<int64_t>(1, 5'000);
    RC_ASSERT(is_bijection(size, *rc::gen::arbitrary<uint64_t>(), *rc::gen::inRange<int64_t>(0, int64_t{1} << 32)));
  }));
}

TEST_CASE("KeyedPermutation: sizes around powers of four, where the domain is tight or four times too large") {
  for (const int64_t size : {255, 256, 257, 4095, 4096, 4097, 16384, 16385, 65537}) CHECK(is_bijection(size, 3, 1));
}

TEST_CASE("KeyedPermutation: stays in range at sizes no table could hold") {
  CHECK(rc::check([] {
    const auto size = *rc::gen::inRange<int64_t>(int64_t{1} << 33, int64_t{1} << 62);
    const KeyedPermutation permutation(size, *rc::gen::arbitrary<uint64_t>(), 0);
    const auto a = *rc::gen::inRange<int64_t>(0, size), b = *rc::gen::inRange<int64_t>(0, size);
    RC_ASSERT(permutation(a) >= 0 && permutation(a) < size);
    RC_ASSERT((permutation(a) == permutation(b)) == (a == b));
  }));
  CHECK(KeyedPermutation(int64_t{1} << 62, 1, 0)((int64_t{1} << 62) - 1) >= 0);
}

TEST_CASE("KeyedPermutation: a function of size, seed and epoch, and of each of them") {
  CHECK(table(1000, 1, 0) == table(1000, 1, 0));
  CHECK(table(1000, 1, 0) != table(1000, 2, 0));
  CHECK(table(1000, 1, 0) != table(1000, uint64_t{1} | uint64_t{1} << 32, 0));
  CHECK(table(1000, 1, 0) != table(1000, 1, 1));
}

TEST_CASE("KeyedPermutation: the order of scheme v1 does not change") {
  CHECK(table(10, 42, 0) == std::vector<int64_t>{2, 8, 6, 3, 1, 9, 4, 5, 7, 0});
}

TEST_CASE("KeyedPermutation: all orders of five are about equally frequent") {
  std::map<std::vector<int64_t>, int> count;
  constexpr int kDraws = 6'000, kOrders = 120;
  for (int epoch = 0; epoch < kDraws; ++epoch) ++count[table(5, 11, epoch)];
  REQUIRE(count.size() == kOrders);
  double chi_square = 0.0;
  for (const auto& [order, n] : count)
    chi_square += (n - kDraws / kOrders) * (n - kDraws / kOrders) / double(kDraws / kOrders);
  CHECK(chi_square < 181.0);  // 119 degrees of freedom: exceeded by chance once in 5,000
}

TEST_CASE("KeyedPermutation: refuses what it cannot permute") {
  CHECK(message_of<Error>([] { KeyedPermutation(0, 1, 0); }) == "KeyedPermutation: size must be in [1, 2^62], got 0");
  CHECK(message_of<Error>([] { KeyedPermutation((int64_t{1} << 62) + 1, 1, 0); }) ==
        "KeyedPermutation: size must be in [1, 2^62], got 4611686018427387905");
  CHECK(message_of<Error>([] { KeyedPermutation(3, 1, -1); }) == "KeyedPermutation: epoch must be >= 0, got -1");
  CHECK(message_of<Error>([] { KeyedPermutation(3, 1, 0)(3); }) == "KeyedPermutation: index must be in [0, 3), got 3");
  CHECK(message_of<Error>([] { KeyedPermutation(3, 1, 0)(-1); }) ==
        "KeyedPermutation: index must be in [0, 3), got -1");
}

}  // namespace lacuna

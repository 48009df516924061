#include "core/rng.h"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <set>
#include <vector>

using namespace lacuna;

namespace {

using Words = std::array<uint32_t, 4>;

Words words(const Philox::Block& block) { return {block.word[0], block.word[1], block.word[2], block.word[3]}; }

}  // namespace

TEST_CASE("Philox: the known answers of Random123, philox4x32 with 10 rounds") {
  CHECK(words(Philox::block({{0, 0, 0, 0}}, {{0, 0}})) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  const uint32_t f = 0xffffffff;
  CHECK(words(Philox::block({{f, f, f, f}}, {{f, f}})) == Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(words(Philox::block({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, {{0xa4093822, 0x299f31d0}})) ==
        Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("Rng: scheme v1 is frozen") {  // expected words come from a separate implementation of the scheme
  CHECK(words(Rng(0, RandomPurpose::init).bits({}, 0)) == Words{0x96b27bb2, 0x05186cda, 0x88467169, 0x678caf9d});
  const Rng::Place place{.step = 0xfedcba98, .sample = 0x0123456789, .op = 0xabcd};
  CHECK(words(Rng(0x123456789abcdef0, RandomPurpose::dropout).bits(place, 0x9876543210)) ==
        Words{0x4824dcdb, 0xc555e7d4, 0xe1aaa740, 0xef8c437a});
  CHECK(Rng::kScheme == 1);
}

TEST_CASE("Rng: every part of the address matters, up to its width") {
  std::set<Words> seen;
  int64_t drawn = 0;
  const auto draw = [&](uint64_t seed, RandomPurpose purpose, Rng::Place place, int64_t group) {
    seen.insert(words(Rng(seed, purpose).bits(place, group)));
    ++drawn;
  };
  draw(0, RandomPurpose::test, {}, 0);
  for (int bit = 0; bit < 64; ++bit) draw(uint64_t{1} << bit, RandomPurpose::test, {}, 0);
  for (int bit = 0; bit < 32; ++bit) draw(0, RandomPurpose::test, {.step = int64_t{1} << bit}, 0);
  for (int bit = 0; bit < 40; ++bit) draw(0, RandomPurpose::test, {.sample = int64_t{1} << bit}, 0);
  for (int bit = 0; bit < 16; ++bit) draw(0, RandomPurpose::test, {.op = int64_t{1} << bit}, 0);
  for (int bit = 0; bit < 40; ++bit) draw(0, RandomPurpose::test, {}, int64_t{1} << bit);
  for (const auto purpose :
       {RandomPurpose::init, RandomPurpose::dropout, RandomPurpose::data_order, RandomPurpose::sampling})
    draw(0, purpose, {}, 0);
  CHECK(static_cast<int64_t>(seen.size()) == drawn);

  const Rng rng(0, RandomPurpose::test);
  const Words origin = words(rng.bits({}, 0));
  CHECK(words(rng.bits({.step = int64_t{1} << 32}, 0)) == origin);
  CHECK(words(rng.bits({.sample = int64_t{1} << 40}, 0)) == origin);
  CHECK(words(rng.bits({.op = int64_t{1} << 16}, 0)) == origin);
  CHECK(words(rng.bits({}, int64_t{1} << 40)) == origin);
}

TEST_CASE("Rng: numbers depend on their address alone, not on the order of the calls") {
  const Rng rng(42, RandomPurpose::test), again(42, RandomPurpose::test);
  const Rng::Place place{.step = 3, .sample = 5, .op = 7};
  std::vector<double> forward, backward;
  for (int64_t i = 0; i < 100; ++i) forward.push_back(rng.uniform(place, i) + rng.normal(place, i));
  for (int64_t i = 99; i >= 0; --i) backward.insert(backward.begin(), again.uniform(place, i) + again.normal(place, i));
  CHECK(forward == backward);
}

TEST_CASE("Rng: uniform numbers are in [0, 1), evenly spread and uncorrelated") {
  constexpr int64_t kCount = 1 << 18;
  constexpr int kBins = 64;
  const Rng rng(1, RandomPurpose::test);
  std::array<int64_t, kBins> bins{};
  double sum = 0, products = 0, previous = 0;
  for (int64_t i = 0; i < kCount; ++i) {
    const double x = rng.uniform({.step = 1}, i);
    REQUIRE(x >= 0.0);
    REQUIRE(x < 1.0);
    ++bins[static_cast<size_t>(x * kBins)];
    sum += x - 0.5;
    products += (x - 0.5) * previous;
    previous = x - 0.5;
  }
  const double n = kCount, expected = n / kBins;
  double chi_squared = 0;
  for (const int64_t count : bins) chi_squared += std::pow(static_cast<double>(count) - expected, 2) / expected;
  CHECK(std::abs(sum) < 5 * std::sqrt(n / 12));  // five standard deviations
  CHECK(std::abs(products) < 5 * std::sqrt(n) / 12);
  CHECK(chi_squared < 63 + 5 * std::sqrt(2 * 63));
}

TEST_CASE("Rng: normal numbers have the moments and tails of the normal distribution, and are uncorrelated") {
  constexpr int64_t kCount = 1 << 18;
  const Rng rng(1, RandomPurpose::test);
  double m1 = 0, m2 = 0, m3 = 0, m4 = 0, products = 0, previous = 0, beyond_two = 0;
  for (int64_t i = 0; i < kCount; ++i) {
    const double x = rng.normal({.op = 2}, i);
    REQUIRE(std::isfinite(x));
    m1 += x;
    m2 += x * x;
    m3 += x * x * x;
    m4 += x * x * x * x;
    products += x * previous;
    previous = x;
    beyond_two += std::abs(x) > 2;
  }
  const double n = kCount, deviations = 5 / std::sqrt(n);
  const double tail = std::erfc(std::sqrt(2.0));  // P(|x| > 2)
  CHECK(std::abs(m1 / n) < deviations);           // variances of x, x^2, x^3, x^4: 1, 2, 15, 96
  CHECK(std::abs(m2 / n - 1) < deviations * std::sqrt(2.0));
  CHECK(std::abs(m3 / n) < deviations * std::sqrt(15.0));
  CHECK(std::abs(m4 / n - 3) < deviations * std::sqrt(96.0));
  CHECK(std::abs(products / n) < deviations);
  CHECK(std::abs(beyond_two / n - tail) < deviations * std::sqrt(tail * (1 - tail)));
}

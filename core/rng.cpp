#include "core/rng.h"

#include <cmath>
#include <numbers>

namespace lacuna {
namespace {

double to_unit(uint32_t high, uint32_t low) {  // 53 bits, [0, 1)
  return static_cast<double>((uint64_t{high} << 32 | low) >> 11) * 0x1p-53;
}

}  // namespace

double Rng::uniform(Place place, int64_t index) const {
  const Philox::Block b = bits(place, index / 2);
  return index % 2 == 0 ? to_unit(b.word[0], b.word[1]) : to_unit(b.word[2], b.word[3]);
}

double Rng::normal(Place place, int64_t index) const {
  const Philox::Block b = bits(place, index / 2);
  const double radius = std::sqrt(-2.0 * std::log(1.0 - to_unit(b.word[0], b.word[1])));
  const double angle = 2.0 * std::numbers::pi * to_unit(b.word[2], b.word[3]);
  return radius * (index % 2 == 0 ? std::cos(angle) : std::sin(angle));
}

}  // namespace lacuna

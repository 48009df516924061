#include "core/rng.h"

#include <cmath>
#include <numbers>

namespace lacuna {

double Rng::normal(Place place, int64_t index) const {
  const Philox::Block b = bits(place, index / 2);
  const double radius = std::sqrt(-2.0 * std::log(1.0 - to_unit(b.word[0], b.word[1])));
  const double angle = 2.0 * std::numbers::pi * to_unit(b.word[2], b.word[3]);
  return radius * (index % 2 == 0 ? std::cos(angle) : std::sin(angle));
}

}  // namespace lacuna

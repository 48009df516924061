#include "optim/ema.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "tests/optim/parameters_for_test.h"

namespace lacuna {
namespace {

TEST_CASE("ema: follows the formula, with a decay that grows from 0.1") {
  const Parameters parameters(specs_for_test(), 1, DType::f64);
  Ema ema(parameters, 0.3);
  std::vector<double> average = elements(parameters);
  for (int64_t t = 0; t < 8; ++t) {
    for (const Parameters::Entry& entry : parameters.entries())
      fill(entry.variable.value(), std::sin(static_cast<double>(t)));
    ema.update();
    const double decay = std::min(0.3, (1.0 + static_cast<double>(t)) / (10.0 + static_cast<double>(t)));
    for (double& a : average) a = decay * a + (1.0 - decay) * std::sin(static_cast<double>(t));
  }
  CHECK(ema.updates() == 8);
  const std::vector<double> got = elements(parameters, ema.average());
  double largest = 0.0;
  for (size_t i = 0; i < got.size(); ++i) largest = std::max(largest, std::abs(got[i] - average[i]));
  CHECK(largest < 1e-14);
}

TEST_CASE("ema: swap exchanges parameters and averages, and twice is the identity") {
  const Parameters parameters(specs_for_test(), 1);
  Ema ema(parameters, 0.9);
  fill(parameters.values(), 2.0);
  ema.update();
  const std::vector<double> values = elements(parameters), averages = elements(parameters, ema.average());
  REQUIRE(values != averages);
  ema.swap();
  CHECK(elements(parameters) == averages);
  CHECK(elements(parameters, ema.average()) == values);
  ema.swap();
  CHECK(elements(parameters) == values);
  CHECK(elements(parameters, ema.average()) == averages);
}

TEST_CASE("ema: a decay out of range is refused") {
  const Parameters parameters({{"w", {2}, 1.0}}, 1);
  CHECK_THROWS_WITH_AS(Ema(parameters, 1.0), "ema: decay must be in [0, 1), got 1", UsageError);
}

}  // namespace
}  // namespace lacuna

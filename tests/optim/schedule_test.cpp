#include "optim/schedule.h"

#include <doctest/doctest.h>

#include "core/error.h"

namespace lacuna {
namespace {

TEST_CASE("schedule: linear to the highest rate, then a cosine to zero") {
  const ScheduleConfig config{.lr = 0.8, .warmup_steps = 4, .total_steps = 12};
  CHECK(learning_rate(config, 0) == doctest::Approx(0.2));
  CHECK(learning_rate(config, 3) == doctest::Approx(0.8));
  CHECK(learning_rate(config, 4) == doctest::Approx(0.8));
  CHECK(learning_rate(config, 6) == doctest::Approx(0.4 * (1.0 + 0.70710678118654752)));
  CHECK(learning_rate(config, 8) == doctest::Approx(0.4));
  CHECK(learning_rate(config, 12) == 0.0);
  CHECK(learning_rate(config, 1000) == 0.0);
  for (int64_t step = 4; step < 12; ++step) CHECK(learning_rate(config, step) > learning_rate(config, step + 1));
}

TEST_CASE("schedule: without warm-up it begins at the highest rate; a run inside its warm-up has no cosine") {
  CHECK(learning_rate({.lr = 0.8, .warmup_steps = 0, .total_steps = 10}, 0) == doctest::Approx(0.8));
  CHECK(learning_rate({.lr = 0.8, .warmup_steps = 10, .total_steps = 5}, 4) == doctest::Approx(0.4));
  CHECK(learning_rate({.lr = 0.8, .warmup_steps = 10, .total_steps = 5}, 5) == 0.0);
}

TEST_CASE("schedule: negative fields are refused") {
  CHECK_THROWS_WITH_AS(learning_rate({.lr = -1.0, .total_steps = 5}, 0), "schedule: lr must be at least 0, got -1",
                       UsageError);
  CHECK_THROWS_AS(learning_rate({.lr = 1.0, .warmup_steps = -1, .total_steps = 5}, 0), UsageError);
}

}  // namespace
}  // namespace lacuna

#include "optim/loss_scaler.h"

#include <doctest/doctest.h>

#include <limits>

#include "tests/support/expect_error.h"

namespace lacuna {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNotANumber = std::numeric_limits<double>::quiet_NaN();

TEST_CASE("loss_scaler: doubles after 2000 finite gradients in a row, halves and skips at one that is not") {
  LossScaler scaler(/*dynamic=*/true);
  CHECK(scaler.scale() == 65536.0);
  for (int i = 0; i < 1999; ++i) CHECK(scaler.update(1.0));
  CHECK(scaler.scale() == 65536.0);
  CHECK_FALSE(scaler.update(kInfinity));
  CHECK(scaler.scale() == 32768.0);
  for (int i = 0; i < 1999; ++i) CHECK(scaler.update(0.0));
  CHECK(scaler.scale() == 32768.0);  // the count began anew
  CHECK(scaler.update(1.0));
  CHECK(scaler.scale() == 65536.0);
  CHECK_FALSE(scaler.update(kNotANumber));
  CHECK(scaler.scale() == 32768.0);
}

TEST_CASE("loss_scaler: goes on from its state") {
  LossScaler first(true), second(true);
  for (int i = 0; i < 1234; ++i) first.update(1.0);
  first.update(kInfinity);
  for (int i = 0; i < 1500; ++i) first.update(1.0);
  second.set_state(first.state());
  for (int i = 0; i < 500; ++i) {
    first.update(1.0);
    second.update(1.0);
  }
  CHECK(second.state() == first.state());
  CHECK(second.scale() == 65536.0);
}

TEST_CASE("loss_scaler: without scaling the scale is 1 and a gradient must be finite") {
  LossScaler scaler(/*dynamic=*/false);
  for (int i = 0; i < 5000; ++i) CHECK(scaler.update(1.0));
  CHECK(scaler.scale() == 1.0);
  CHECK(message_of([&] { scaler.update(kInfinity); }) == "loss_scaler: the gradient is not finite");
}

TEST_CASE("loss_scaler: gives up when no scale helps") {
  LossScaler scaler(true);
  for (int halvings = 0; halvings < 30; ++halvings) CHECK_FALSE(scaler.update(kInfinity));
  CHECK(scaler.scale() == 0x1p-14);
  CHECK(message_of([&] { scaler.update(kInfinity); }).find("even at the lowest scale") != std::string::npos);
}

}  // namespace
}  // namespace lacuna

#include "core/device.h"

#include <doctest/doctest.h>

#include "core/error.h"
#include "tests/support/expect_error.h"

using namespace lacuna;

TEST_CASE("Device: names, equality and the stream of the host") {
  const Device gpu{DeviceType::cuda, 1};
  CHECK(concat(kCpu) == "cpu");
  CHECK(concat(gpu) == "cuda:1");
  CHECK(gpu != Device{DeviceType::cuda, 0});
  CHECK(current_stream(kCpu).device == kCpu);
  CHECK(current_stream(kCpu).native == nullptr);
}

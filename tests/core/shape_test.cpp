#include "core/shape.h"

#include <doctest/doctest.h>

#include <vector>

#include "core/error.h"
#include "tests/support/expect_error.h"

using namespace lacuna;

TEST_CASE("Shape: extents, rank and number of elements") {
  const Shape shape{2, 3, 5};
  CHECK(shape.rank() == 3);
  CHECK(shape.numel() == 30);
  CHECK(shape.dim(0) == 2);
  CHECK(shape.dim(-1) == 5);
  CHECK(shape.dim(-3) == 2);
  CHECK(concat(shape) == "[2, 3, 5]");

  CHECK(Shape{}.rank() == 0);
  CHECK(Shape{}.numel() == 1);
  CHECK(concat(Shape{}) == "[]");
  CHECK(Shape{4, 0}.numel() == 0);
  CHECK(Shape{1, 1, 1, 1, 1, 1, 1, 2}.numel() == 2);
}

TEST_CASE("Shape: equality looks at the extents, not only at their product") {
  CHECK(Shape{2, 3} == Shape{2, 3});
  CHECK(Shape{2, 3} != Shape{3, 2});
  CHECK(Shape{6} != Shape{6, 1});
  CHECK(Shape{} != Shape{1});
}

TEST_CASE("Shape: refuses what no tensor can have") {
  const int64_t big = int64_t{1} << 32, largest = INT64_MAX;
  expect_error("extents must be >= 0, got [2, -1]", [] { Shape{2, -1}; });
  expect_error("overflows 63 bits, got [4294967296, 4294967296]", [&] { Shape{big, big}; });
  expect_error("overflows 63 bits", [&] { Shape{largest, 2}; });
  CHECK(Shape{largest}.numel() == largest);
  CHECK(Shape{largest, 0, largest}.numel() == 0);
  expect_error("at most 8 dimensions, got 9", [] { Shape(std::vector<int64_t>(9, 1)); });
  expect_error("dimension 2 does not exist in [2, 3]", [] { Shape({2, 3}).dim(2); });
  expect_error("dimension -3 does not exist in [2, 3]", [] { Shape({2, 3}).dim(-3); });
  expect_error("dimension 0 does not exist in []", [] { Shape().dim(0); });
}

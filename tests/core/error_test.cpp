#include "core/error.h"

#include <doctest/doctest.h>

#include "core/shape.h"
#include "tests/support/expect_error.h"

using namespace lacuna;

TEST_CASE("check: throws the concatenated parts exactly when the condition fails") {
  CHECK_NOTHROW(check(true, "unused"));
  CHECK(message_of([] {
          check(false, "gelu: needs ", Shape{2, 3}, ", got ", 7, '!');
        }) == "gelu: needs [2, 3], got 7!");
  CHECK(message_of([] { fail("a", 1.5, 'b'); }) == "a1.5b");
}

TEST_CASE("check_usage: throws UsageError, which is an Error; check throws no UsageError") {
  CHECK_NOTHROW(check_usage(true, "unused"));
  CHECK(message_of<UsageError>([] { check_usage(false, "--steps: must be >= 1, got ", 0); }) ==
        "--steps: must be >= 1, got 0");
  CHECK_THROWS_AS(check_usage(false, "x"), Error);
  bool is_usage = false;
  try {
    check(false, "x");
  } catch (const UsageError&) {
    is_usage = true;
  } catch (const Error&) {
  }
  CHECK_FALSE(is_usage);
}

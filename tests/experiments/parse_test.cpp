#include "experiments/parse.h"

#include "tests/support/expect_error.h"

namespace lacuna {
namespace {

TEST_CASE("parse_integer: whole numbers within the range and nothing else") {
  CHECK(parse_integer("--steps", "1", 1, 10) == 1);
  CHECK(parse_integer("--steps", "10", 1, 10) == 10);
  CHECK(parse_integer("--seed", "9223372036854775807", 0, INT64_MAX) == INT64_MAX);
  for (const char* bad :
       {"", " 1", "1 ", "0", "11", "-1", "1.5", "1e3", "nan", "0x10", "99999999999999999999", "1,000"}) {
    CAPTURE(bad);
    expect_error<UsageError>(concat("--steps must be a whole number from 1 to 10, got \"", bad, "\""),
                             [&] { parse_integer("--steps", bad, 1, 10); });
  }
}

TEST_CASE("parse_real: finite numbers within the range") {
  CHECK(parse_real("lr", "1e-3", 0, 10) == 1e-3);
  CHECK(parse_real("lr", "10", 0, 10) == 10.0);
  for (const char* bad : {"", "nan", "inf", "-inf", "1e999", "-0.1", "10.1", "1e-3x", "0.1 "}) {
    CAPTURE(bad);
    expect_error<UsageError>("lr must be a number from 0 to 10, got", [&] { parse_real("lr", bad, 0, 10); });
  }
}

TEST_CASE("parse_bytes: numbers with a suffix") {
  CHECK(parse_bytes("--device-memory", "17") == 17);
  CHECK(parse_bytes("--device-memory", "2K") == 2048);
  CHECK(parse_bytes("--device-memory", "80G") == int64_t{80} << 30);
  for (const char* bad : {"", "G", "0", "-1G", "1.5G", "16GB", "99999999999T", "8388608T"})
    expect_error<UsageError>("--device-memory must be a number of bytes", [&] { parse_bytes("--device-memory", bad); });
}

TEST_CASE("suggestion: the nearest name, if it is near") {
  CHECK(suggestion("--stpes", {"--steps", "--seed"}) == " (did you mean --steps?)");
  CHECK(suggestion("n_ctxx", {"n_heads", "n_ctx"}) == " (did you mean n_ctx?)");
  CHECK(suggestion("--entirely-else", {"--steps", "--seed"}).empty());
}

TEST_CASE("numbers for people") {
  CHECK(format_count(0) == "0");
  CHECK(format_count(999) == "999");
  CHECK(format_count(59'196'928) == "59,196,928");
  CHECK(format_count(-1234) == "-1,234");
  CHECK(format_bytes(17) == "17 bytes");
  CHECK(format_bytes(int64_t{3} << 29) == "1.5 GiB");
  CHECK(format_seconds(59.4) == "59 s");
  CHECK(format_seconds(200) == "3 min 20 s");
  CHECK(format_seconds(7500) == "2 h 05 min");
}

}  // namespace
}  // namespace lacuna

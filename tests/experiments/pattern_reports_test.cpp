#include "tests/support/expect_error.h"

#include "experiments/pattern_options.h"

namespace lacuna {
namespace {

PatternOptions parse(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "patterns");
  return parse_pattern_options(arguments);
}

struct Checked {
  std::string text;
  int64_t violations = 0;
};

Checked check_of(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "check");
  Checked checked;
  checked.text = check_report(parse(arguments), checked.violations);
  return checked;
}

TEST_CASE("patterns check: what the paper's patterns reach") {
  for (const char* by : {"pairs", "views"}) {
    const auto check_fixed = [by](const char* pattern, std::vector<std::string> more = {}) {
      std::vector<std::string> arguments{pattern, "--n", "600", "--by", by};
      arguments.insert(arguments.end(), more.begin(), more.end());
      return check_of(arguments);
    };
    for (const char* strided : {"local(window=96), column(stride=96)", "column(stride=96), local(window=97)"}) {
      CHECK(check_fixed(strided).violations == 0);
      CHECK(contains(check_fixed(strided).text, "through 2 layers\nproved"));
    }
    const char* kForward = "fixed_block(stride=128), fixed_summary(stride=128, c=32)";
    CHECK(contains(check_fixed(kForward).text, "FAIL  rows       96 rows have no key: 0-95;"));
    CHECK(check_fixed(kForward).violations == 1);
    CHECK(check_fixed(kForward, {"--allow-empty"}).violations == 0);

    const char* kBackward = "fixed_summary(stride=128, c=32), fixed_block(stride=128)";
    const char* kMessage = "query 128 does not reach key 0 through 2 layers; all pairs take 3 layers";
    CHECK(contains(check_fixed(kBackward).text, kMessage));
    CHECK(check_fixed(kBackward).violations == 2);
    CHECK(check_fixed(kBackward, {"--allow-empty", "--allow-unreachable"}).violations == 0);
    CHECK(check_fixed(kBackward, {"--allow-empty", "--layers", "3"}).violations == 0);

    const char* kMerged = "fixed_block(stride=128) + fixed_summary(stride=128, c=32, sub_blocks=4)";
    CHECK(contains(check_fixed(kMerged).text, "through 1 layer\nproved"));
    const Checked second = check_fixed(kMerged, {"--head", "1"});
    CHECK(contains(second.text, "query 128 never reaches key 96, through any number of layers"));
    CHECK(second.violations == 1);
  }
}

TEST_CASE("patterns cost: keys, arithmetic and tiles") {
  const std::string text = cost_report(parse({"cost", "fixed_block(stride=128) + fixed_summary(stride=128, c=32)",
                                              "--n", "12288", "--tiles", "32x32", "--d-qk", "32", "--d-v", "64"}));
  CHECK(contains(text, "1,584.5 mean, 3,168 most, 25.8 % of dense"));
  CHECK(contains(text, "19,200       19,660,800"));
  CHECK(contains(text, "3.74 GFLOP: two products"));
  CHECK(contains(text, "8.72 GFLOP: five products"));
  const auto mean = [](const char* pattern, const char* n) {
    const std::string cost = cost_report(parse({"cost", pattern, "--n", n}));
    return cost.substr(cost.rfind(": ") + 2);
  };
  CHECK(mean("local(window=128), column(stride=128)", "12288") == "87.9 keys per query\n");
  CHECK(mean("column(stride=96), local(window=96), local(window=96), local(window=96)", "3072") ==
        "75.0 keys per query\n");
  CHECK(mean("local(window=96) + column(stride=96)", "3072") == "110.0 keys per query\n");
}

TEST_CASE("patterns: a preset gives pattern, n, heads and layers") {
  const PatternOptions options = parse({"check", "--preset", "enwik8/enwik8-95m-fixed"});
  CHECK(options.n == 12'288);
  CHECK(options.n_heads == 8);
  CHECK(options.layers == 30);
  CHECK(parse({"check", "--preset", "music-1m", "--n", "5"}).n == 5);
}

TEST_CASE("patterns: misuse is an error that says what to do") {
  const struct {
    std::vector<std::string> arguments;
    const char* message;
  } kBad[] = {
      {{}, "a command is missing"},
      {{"chek"}, "unknown command chek (did you mean check?)"},
      {{"check"}, "a pattern is missing"},
      {{"check", "dense"}, "--n is missing"},
      {{"check", "dense", "--n", "0"}, "--n must be a whole number from 1"},
      {{"check", "dens", "--n", "5"}, "no pattern is called 'dens'; did you mean 'dense'?"},
      {{"check", "dense", "--n", "5", "--hed", "0"}, "unknown flag --hed (did you mean --head?)"},
      {{"check", "dense", "--n", "5", "--head", "1"}, "--head must be a whole number from 0 to 0"},
      {{"check", "dense", "--preset", "x"}, "not both"},
      {{"check", "--preset", "enwik8-95m-fixd"}, "did you mean enwik8-95m-fixed?"},
      {{"check", "--preset", "laptop"}, "is one of several programs: write"},
      {{"cost", "dense", "--n", "5", "--tiles", "32"}, "--tiles must be sizes as 32x32"},
      {{"check", "dense", "--n", "5", "--by", "view"}, "--by must be auto, pairs or views"},
  };
  for (const auto& bad : kBad) expect_error<UsageError>(bad.message, [&] { parse(bad.arguments); });
}

}  // namespace
}  // namespace lacuna

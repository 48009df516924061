#include "ops/sparse_attention/analysis/check.h"

#include <doctest/doctest.h>
#include <rapidcheck.h>

#include "tests/ops/sparse_attention/random_patterns.h"
#include "tests/support/expect_error.h"

using namespace lacuna;

namespace {

constexpr int64_t kByPairs = 1 << 20, kByViews = 0;  // all_pairs_limit

/// Changes one thing about one of the parts.
void damage(std::vector<Part>& parts) {
  const size_t p = *rc::gen::inRange<size_t>(0, parts.size());
  Part& part = parts[p];
  View& view = part.view;
  switch (*rc::gen::inRange(0, 8)) {
    case 0: parts.erase(parts.begin() + static_cast<int64_t>(p)); break;
    case 1: parts.push_back(Part(part)); break;
    case 2: part.contiguous_before.clear(); break;
    case 3: part.scattered_before.clear(); break;
    case 4: part.prefix_before += *rc::gen::inRange(0, 2) == 0 ? 1 : part.prefix_before > 0 ? -1 : 1; break;
    case 5: view.window = view.window == kUnbounded ? *rc::gen::inRange<int64_t>(1, 90) : view.window + 1; break;
    case 6: view.segment = view.segment == kUnbounded ? *rc::gen::inRange<int64_t>(1, 90) : view.segment + 1; break;
    default: view.key_end = view.key_end == kUnbounded ? *rc::gen::inRange<int64_t>(0, 90) : view.key_end - 1;
  }
}

/// A pattern whose views are wrong in a way that a field chooses, at positions from `from` on.
struct Broken {
  enum Fault { none, looks_ahead, misses_last_column, misses_own, has_too_much, shared_twice };
  int64_t fault = none, from = 0, stride = 8;

  static constexpr std::string_view name = "broken";
  static std::vector<Field<Broken>> fields() { return {{"stride", &Broken::stride}}; }
  int64_t multiplicity(int64_t i, int64_t j) const {
    if (fault == looks_ahead && i >= from && j == i + 1) return 1;
    if (j > i) return 0;
    if (fault == misses_own && i >= from && j == i - stride - 1) return 1;
    if (fault == has_too_much && i >= from && j == i) return 0;
    if (fault == misses_last_column && j % stride == stride - 1 && i >= from) return 1;
    return i / stride == j / stride;
  }
  bool operator()(int64_t i, int64_t j) const { return multiplicity(i, j) > 0; }
  std::vector<View> views() const {
    View view;
    view.segment = stride;
    if (fault == shared_twice) return {view, view};
    return {view};
  }
  friend bool operator==(const Broken&, const Broken&) = default;
};

}  // namespace

TEST_CASE("check: what kernels make of random unions holds, by pairs and by views") {
  CHECK(rc::check([] {
    const int64_t n = *rc::gen::inRange(1, 150);
    const PatternUnion patterns =
        LayerPattern{{random_union(*rc::gen::element(4, 25, 90), 2)}}.for_head(*rc::gen::inRange(0, 2));
    RC_LOG() << to_string({{{{patterns}}}}) << " n " << n;
    const std::vector<Part> parts = parts_of(patterns);
    for (const int64_t limit : {kByPairs, kByViews}) {
      for (const Pattern& pattern : patterns) {
        RC_ASSERT(check_views(pattern.views()).holds());
        const Finding predicate = check_predicate(pattern, n, limit);
        RC_ASSERT(predicate.holds());
        RC_ASSERT(predicate.complete);
      }
      RC_ASSERT(check_parts(patterns, parts, n, limit).holds());
      RC_ASSERT(check_backward(patterns, parts, n, limit).holds());
    }
    RC_ASSERT(check_parts(patterns, parts, n, kByViews).complete);
  }));
}

TEST_CASE("check: damaged parts are found by views exactly when they are found by pairs") {
  int found = 0;
  CHECK(rc::check([&] {
    const int64_t n = *rc::gen::inRange(1, 150);
    const PatternUnion patterns =
        LayerPattern{{random_union(*rc::gen::element(4, 25, 90), 2)}}.for_head(*rc::gen::inRange(0, 2));
    std::vector<Part> parts = parts_of(patterns);
    damage(parts);
    RC_LOG() << to_string({{{{patterns}}}}) << " n " << n;
    const Finding pairs = check_parts(patterns, parts, n, kByPairs), views = check_parts(patterns, parts, n, kByViews);
    RC_ASSERT(pairs.holds() == views.holds());
    RC_ASSERT(check_backward(patterns, parts, n, kByPairs).holds() == pairs.holds());
    found += !pairs.holds();
  }));
  CHECK(found > 20);
}

TEST_CASE("check: a wrong part is described by its first pair") {
  const PatternUnion patterns{Local{8}, Column{8}, Global{3}};
  const auto violation = [&](const auto& change) {
    std::vector<Part> parts = parts_of(patterns);
    change(parts);
    const std::string by_pairs = check_parts(patterns, parts, 2000).violation.value_or("none");
    CHECK(check_parts(patterns, parts, 2000, kByViews).violation.value_or("none") == by_pairs);
    return by_pairs;
  };
  CHECK(violation([](auto&) {}) == "none");
  CHECK(violation([](auto& parts) { parts[2].contiguous_before.clear(); }) ==
        "double pair: query 3 counts key 3 1x, the parts 2x");
  CHECK(violation([](auto& parts) { parts[0].view.window = 7; }) ==
        "missing pair: query 7 attends to key 0, and the parts leave it out");
  CHECK(violation([](auto& parts) { parts[1].view.key_end = 4; }) ==
        "double pair: query 11 counts key 3 1x, the parts 2x");
  CHECK(violation([](auto& parts) {
          parts.erase(parts.begin() + 2);
          parts[0].view.segment = 5;
        }) == "missing pair: query 5 attends to key 0, and the parts leave it out");
  CHECK(violation([](auto& parts) { parts[0].view.window = 9; }) ==
        "double pair: query 8 counts key 0 1x, the parts 2x");
}

TEST_CASE("check: a predicate that is not its views is found, near and far") {
  const auto violation = [](Broken::Fault fault, int64_t from, int64_t n) {
    const Pattern pattern = Broken{fault, from};
    const Finding by_views = check_predicate(pattern, n, kByViews);
    CHECK(check_predicate(pattern, n).holds() == by_views.holds());
    return by_views.violation.value_or("none");
  };
  for (const auto& [from, n] : {std::pair<int64_t, int64_t>{0, 500}, {400, 500}, {0, 5000}, {3000, 5000}}) {
    CHECK(violation(Broken::none, from, n) == "none");
    CHECK(contains(violation(Broken::looks_ahead, from, n), "not causal: query"));
    CHECK(contains(violation(Broken::misses_own, from, n), "missing pair: query"));
    CHECK(contains(violation(Broken::has_too_much, from, n), "wrong pair: query"));
    CHECK(contains(violation(Broken::misses_last_column, from, n), "missing pair: query"));
    CHECK(contains(violation(Broken::shared_twice, from, n), "double pair: query 0 counts key 0 1x, the views 2x"));
  }
  CHECK(violation(Broken::looks_ahead, 0, 500) == "not causal: query 0 attends to key 1, which comes after it");
}

TEST_CASE("check: views that kernels cannot follow") {
  const auto violation = [](const auto& change) {
    View view;
    change(view);
    return check_views({View{}, view}).violation.value_or("none");
  };
  CHECK(violation([](View&) {}) == "none");
  CHECK(contains(violation([](View& v) { v.residues = 0; }), "residues must be at least 1, is 0"));
  CHECK(contains(violation([](View& v) { v.keys_of_group_0 = {0, 2, 3}; }), "from 1 to their period 2, is 3"));
  CHECK(contains(violation([](View& v) { v.keys_of_group_0 = {0, 0, 0}; }), "period of its keys must be at least 1"));
  CHECK(contains(violation([](View& v) { v.window = 0; }), "window must be at least 1, is 0"));
  CHECK(contains(violation([](View& v) { v.segment = -1; }), "segment must be at least 1, is -1"));
  CHECK(contains(violation([](View& v) { v.residues = 2; }), "groups must not share keys"));
  CHECK(contains(violation([](View& v) {
                   v.residues = 4;
                   v.keys_of_group_0 = {0, 4, 2};
                 }),
                 "4 groups that each have 2 of every 4 positions"));
}

TEST_CASE("check: rows without keys are listed as runs") {
  const auto empty = [](const PatternUnion& patterns, int64_t n) {
    std::string runs;
    for (const Range& run : row_statistics(parts_of(patterns), n).empty) runs += concat(run.begin, "..", run.end, " ");
    return runs;
  };
  CHECK(empty({FixedSummary{128, 32}}, 12'288) == "0..96 ");
  CHECK(empty({FixedBlock{128}, FixedSummary{128, 32}}, 12'288).empty());
  CHECK(empty({FixedSummary{128, 32}}, 50) == "0..50 ");
}

TEST_CASE("check: keys of a row are counted once, whatever parts overlap") {
  CHECK(rc::check([] {
    const int64_t n = *rc::gen::inRange(1, 100);
    const PatternUnion patterns = LayerPattern{{random_union(25, 2)}}.for_head(0);
    RowStatistics expected;
    for (int64_t i = 0; i < n; ++i) {
      int64_t keys = 0;
      for (int64_t j = 0; j <= i; ++j) keys += multiplicity(patterns, i, j);
      expected.pairs += keys;
      expected.most = std::max(expected.most, keys);
    }
    const RowStatistics rows = row_statistics(parts_of(patterns), n);
    RC_ASSERT(rows.exact);
    RC_ASSERT(rows.pairs == expected.pairs);
    RC_ASSERT(rows.most == expected.most);
  }));
}

TEST_CASE("check: active tiles of the paper's patterns") {
  const auto tiles = [](const PatternUnion& patterns, int64_t n, int64_t side) {
    return count_tiles(parts_of(patterns), n, {side, side});
  };
  CHECK(tiles({Dense{}}, 12'288, 32) == 73'920);
  CHECK(tiles({Local{128}}, 12'288, 32) == 1910);
  CHECK(tiles({Column{128}}, 12'288, 32) == 768);
  CHECK(tiles({FixedBlock{128}, FixedSummary{128, 32}}, 12'288, 32) == 19'200);
  CHECK(tiles({Dense{}}, 3072, 32) == 4656);
  CHECK(tiles({Local{96}}, 3072, 32) == 378);
  CHECK(tiles({Column{96}}, 3072, 32) == 96);
  CHECK(tiles({FixedBlock{96}, FixedSummary{96, 32}}, 3072, 32) == 1680);
  CHECK(count_tiles(parts_of({Local{128}}), 12'288, {128, 1}) == 128 + 95 * 255);  // 1-wide tiles: keys that are met
}

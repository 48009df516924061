#include "ops/sparse_attention/analysis/reach.h"

#include <doctest/doctest.h>
#include <rapidcheck.h>

#include "tests/ops/sparse_attention/random_patterns.h"

using namespace lacuna;

namespace {

Reach by_pairs(const char* text, int64_t n, int64_t limit, int64_t n_heads = 1) {
  return reach_by_pairs(head_groups(parse_attention(text), n_heads), n, limit);
}

Reach by_views(const char* text, int64_t n, int64_t limit, int64_t n_heads = 1) {
  return reach_by_views(head_groups(parse_attention(text), n_heads), n, limit);
}

}  // namespace

TEST_CASE("reach: by views is by pairs, for random cycles of random layers") {
  CHECK(rc::check([] {
    const bool is_long = *rc::gen::inRange(0, 20) == 0;  // more than are followed together
    const int64_t n = is_long ? *rc::gen::inRange(500, 700) : *rc::gen::inRange(1, 100),
                  n_heads = *rc::gen::inRange(1, 5), limit = *rc::gen::inRange(1, 4);
    AttentionPattern attention;
    const int64_t largest = *rc::gen::element(3, 8, 30);
    for (int layers = *rc::gen::inRange(1, 4); layers > 0; --layers)
      attention.layers.push_back(random_layer(largest, n_heads));
    const std::vector<LayerHeads> cycle = head_groups(attention, n_heads);
    const Reach pairs = reach_by_pairs(cycle, n, limit);
    RC_LOG() << to_string(attention) << " n " << n << " heads " << n_heads << " limit " << limit;
    for (const Follow follow : {Follow::runs, Follow::together, Follow::cheapest}) {
      const Reach views = reach_by_views(cycle, n, limit, follow);
      RC_ASSERT(views.followed == views.sources);
      RC_ASSERT(pairs.layers == views.layers);
      RC_ASSERT(pairs.missing == views.missing);
      RC_ASSERT(pairs.never == views.never);
    }
  }));
}

TEST_CASE("reach: strided attention reaches everything in both orders and with both windows") {
  for (const auto& reach : {by_pairs, by_views})
    for (const char* text : {"local(window=8), column(stride=8)", "local(window=9), column(stride=8)",
                             "column(stride=8), local(window=8)", "column(stride=8), local(window=9)"})
      CHECK(reach(text, 100, 2, 1).layers == 2);
}

TEST_CASE("reach: fixed attention does so only with the block first") {
  for (const auto& reach : {by_pairs, by_views}) {
    CHECK(reach("fixed_block(stride=8), fixed_summary(stride=8, c=2)", 100, 2, 1).layers == 2);
    const Reach summary_first = reach("fixed_summary(stride=8, c=2), fixed_block(stride=8)", 100, 2, 1);
    CHECK(summary_first.missing == PositionPair{8, 0});
    CHECK(summary_first.layers == 3);  // the next layer makes up for it
    CHECK_FALSE(summary_first.never);
  }
}

TEST_CASE("reach: a merged sub-block that is not the last one never does, and all sub-blocks do in one layer") {
  const auto alone_by_views = [](const std::vector<LayerHeads>& cycle, int64_t n, int64_t limit) {
    return reach_by_views(cycle, n, limit);
  };
  for (Reach (*const reach)(const std::vector<LayerHeads>&, int64_t, int64_t) : {reach_by_pairs, +alone_by_views})
    for (int64_t sub_block = 0; sub_block < 4; ++sub_block) {
      const PatternUnion head{FixedBlock{8}, FixedSummary{8, 2, 4, sub_block}};
      const Reach alone = reach({{{head, {0}}}}, 100, 50);
      if (sub_block == 0) CHECK(alone.layers == 2);
      if (sub_block > 0) CHECK_FALSE(alone.layers);  // the tail of a block, from 8 - 2 * sub_block on, cannot leave it
      if (sub_block > 0) CHECK(alone.never == PositionPair{8, 8 - 2 * sub_block});
    }
  for (const auto& reach : {by_pairs, by_views})
    CHECK(reach("fixed_block(stride=8) + fixed_summary(stride=8, c=2, sub_blocks=4)", 100, 1, 4).layers == 1);
  CHECK(by_views("fixed_block(stride=128) + fixed_summary(stride=128, c=32, sub_blocks=4)", 12'288, 1, 8).layers == 1);
}

TEST_CASE("reach: large n") {
  const Reach strided = by_views("local(window=1024), column(stride=1024)", 1'048'576, 2);
  CHECK(strided.layers == 2);
  CHECK(strided.sources == 1024);
  CHECK(by_views("local(window=3)", 1'000'001, 1).layers == 500'000);
  const Reach column = by_views("column(stride=1000)", 1'000'000, 1);
  CHECK_FALSE(column.layers);
  CHECK(column.never == PositionPair{1, 0});
  // Segments and columns together are so many runs that sources are followed together.
  const std::vector<LayerHeads> longnet = head_groups(parse_attention("longnet(w=512:8192, r=1:16)"), 1);
  for (const Follow follow : {Follow::runs, Follow::cheapest}) {
    const Reach reach = reach_by_views(longnet, 30'001, 1, follow);
    CHECK(reach.sources == 8192);
    CHECK(reach.followed == 8192);
    CHECK(reach.missing == PositionPair{512, 1});
    CHECK(reach.never == PositionPair{512, 497});
  }
}

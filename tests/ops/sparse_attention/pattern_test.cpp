#include "ops/sparse_attention/pattern.h"

#include <doctest/doctest.h>
#include <rapidcheck.h>

#include <set>
#include <vector>

#include "core/error.h"
#include "core/text_distance.h"
#include "ops/sparse_attention/parts.h"
#include "tests/ops/sparse_attention/random_patterns.h"
#include "tests/support/expect_error.h"

using namespace lacuna;

namespace {

using Pairs = std::set<std::pair<int64_t, int64_t>>;

/// The pairs of a pattern as the paper lists them: by walking over the keys, not by asking about a pair.
Pairs listed(const Pattern& pattern, int64_t n) {
  Pairs pairs;
  for (int64_t i = 0; i < n; ++i) {
    if (pattern.get_if<Dense>())
      for (int64_t j = 0; j <= i; ++j) pairs.insert({i, j});
    if (const auto* p = pattern.get_if<Local>())
      for (int64_t back = 0; back < p->window && i - back >= 0; ++back) pairs.insert({i, i - back});
    if (const auto* p = pattern.get_if<Column>())
      for (int64_t j = i; j >= 0; j -= p->stride) pairs.insert({i, j});
    if (const auto* p = pattern.get_if<FixedBlock>()) {
      int64_t start = 0;
      while (start + p->stride <= i) start += p->stride;
      for (int64_t j = start; j <= i; ++j) pairs.insert({i, j});
    }
    if (const auto* p = pattern.get_if<FixedSummary>())
      for (int64_t start = 0; start <= i; start += p->stride) {
        const int64_t end = start + p->stride - p->sub_block * p->c;
        for (int64_t j = end - p->c; j < end && j <= i; ++j) pairs.insert({i, j});
      }
    if (const auto* p = pattern.get_if<Dilated>())
      for (int64_t back = 0; back < p->window && i - back * p->dilation >= 0; ++back)
        pairs.insert({i, i - back * p->dilation});
    if (const auto* p = pattern.get_if<Global>())
      for (int64_t j = 0; j < p->n && j <= i; ++j) pairs.insert({i, j});
    if (const auto* p = pattern.get_if<AnyBand>())
      for (int64_t start = p->from - 1 + i % p->residues; start <= i; start += p->period)
        for (int64_t j = start; j < start + p->width && j <= i; ++j)
          if (j > i - p->window && j >= i - i % p->segment && j < p->key_end) pairs.insert({i, j});
    if (const auto* p = pattern.get_if<LongNet>())
      for (size_t k = 0; k < p->w.size(); ++k) {
        int64_t start = 0;
        while (start + p->w[k] <= i) start += p->w[k];
        for (int64_t j = i; j >= start; j -= p->r[k]) pairs.insert({i, j});
      }
  }
  return pairs;
}

Pairs pairs_of(const PatternUnion& patterns, int64_t n) {
  Pairs pairs;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      if (attends(patterns, i, j)) pairs.insert({i, j});
  return pairs;
}

/// The pairs (i, j) that information can take from j to i through layers first to last, each with a residual path.
Pairs reachable(const std::vector<PatternUnion>& layers, int64_t n) {
  Pairs paths;
  for (int64_t i = 0; i < n; ++i) paths.insert({i, i});
  for (const PatternUnion& layer : layers) {
    Pairs longer = paths;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t via = 0; via <= i; ++via)
        if (attends(layer, i, via))
          for (int64_t j = 0; j <= via; ++j)
            if (paths.count({via, j})) longer.insert({i, j});
    paths = longer;
  }
  return paths;
}

}  // namespace

TEST_CASE("pattern: every mask of every head is the set that the paper lists") {
  CHECK(rc::check([] {
    const int64_t n = *rc::gen::inRange(1, 60), n_heads = *rc::gen::inRange(1, 9);
    const LayerPattern layer = random_layer(25, n_heads);
    for (int64_t h = 0; h < n_heads; ++h) {
      Pairs expected;
      for (Pattern pattern : layer.heads[static_cast<size_t>(h) % layer.heads.size()]) {
        if (const auto* p = pattern.get_if<FixedSummary>()) {
          FixedSummary own = *p;
          own.sub_block = h % own.sub_blocks;
          pattern = own;
        }
        expected.merge(listed(pattern, n));
      }
      RC_ASSERT(pairs_of(layer.for_head(h), n) == expected);
    }
  }));
}

TEST_CASE("pattern: the view lists exactly the keys of the predicate, as often as they count, as monotone intervals") {
  CHECK(rc::check([] {
    const int64_t n = *rc::gen::inRange(1, 80);
    const PatternUnion patterns = LayerPattern{{random_union(25, 2)}}.for_head(*rc::gen::inRange(0, 2));
    const std::vector<Part> parts = parts_of(patterns);
    for (int64_t i = 0; i < n; ++i) {
      std::vector<int64_t> visits(static_cast<size_t>(n), 0);
      for_each_key(parts, i, [&](int64_t j) { ++visits.at(static_cast<size_t>(j)); });
      for (int64_t j = 0; j < n; ++j) RC_ASSERT(visits[static_cast<size_t>(j)] == multiplicity(patterns, i, j));
    }

    for (const Pattern& pattern : patterns)
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < n; ++j) {
          int64_t count = 0;
          for (const View& view : pattern.views()) count += view.has(i, j);
          RC_ASSERT(count == pattern.multiplicity(i, j));
        }

    for (const Part& part : parts) {
      int64_t queries = 0;
      for (int64_t group = 0; group < part.view.groups(n); ++group) {
        const Strip strip = part.view.queries(group);
        Range before{0, 0};
        for (int64_t r = 0; r < strip.rank(n); ++r, ++queries) {
          const Range keys = part.keys_of(group, strip.position(r));
          RC_ASSERT(keys.begin >= before.begin);
          RC_ASSERT(keys.end >= before.end);
          RC_ASSERT(keys.begin <= keys.end);
          before = keys;
        }
      }
      RC_ASSERT(queries == n);  // every position is a query of one group
    }
  }));
}

TEST_CASE("pattern: multiplicities are of the keys asked for and no other") {
  int64_t counts[] = {7, 7, 7, 7, 7};
  Pattern(Local{2}).multiplicities(5, 3, 7, counts);
  CHECK(counts[0] == 0);  // key 3
  CHECK(counts[1] == 1);
  CHECK(counts[2] == 1);
  CHECK(counts[3] == 0);
  CHECK(counts[4] == 7);  // not asked for
}

TEST_CASE("strip: rank counts the elements before a position") {
  CHECK(rc::check([] {
    Strip strip;
    strip.first = *rc::gen::inRange(0, 10);
    strip.width = *rc::gen::inRange(1, 6);
    strip.period = strip.width + *rc::gen::inRange(strip.width == 1 ? 0 : 1, 6);
    int64_t count = 0;
    for (int64_t p = 0; p < 60; ++p) {
      RC_ASSERT(strip.rank(p) == count);
      if (strip.position(count) == p) ++count;
    }
  }));
}

TEST_CASE("view: end_of_reach and for_each_group_of are what first_position and the lists of keys say") {
  CHECK(rc::check([] {
    const auto field = [] { return *rc::gen::inRange<int64_t>(1, 13); };
    const auto rarely = [&] { return *rc::gen::inRange(0, 2) == 0 ? field() : kUnbounded; };
    View view;
    view.residues = field();
    view.keys_of_group_0.first = field() - 1;
    view.keys_of_group_0.period = field();
    view.keys_of_group_0.width = *rc::gen::inRange<int64_t>(1, view.keys_of_group_0.period + 1);
    view.window = rarely();
    view.segment = rarely();
    const int64_t n = *rc::gen::inRange<int64_t>(1, 50);
    for (int64_t j = 0; j < n; ++j) {
      int64_t end = j;
      while (end < 2 * n && view.first_position(end) <= j) ++end;
      const int64_t ours = view.end_of_reach(j);
      RC_ASSERT((end < 2 * n ? ours == end : ours >= end));

      std::vector<int64_t> listed, found;
      for (int64_t group = 0; group < view.groups(n); ++group)
        if (view.keys(group).has(j)) listed.push_back(group);
      for_each_group_of(view, j, n, [&](int64_t group) { found.push_back(group); });
      RC_ASSERT(found == listed);
    }
  }));
}

TEST_CASE("pattern: head h takes sub-block h mod sub_blocks, counted from the end of the block") {
  const LayerPattern layer{{{FixedSummary{8, 2, 4}}}};
  for (int64_t h = 0; h < 8; ++h) {
    const PatternUnion head = layer.for_head(h);
    for (int64_t j = 0; j < 8; ++j) CHECK(attends(head, 100, j) == (j / 2 == 3 - h % 4));
  }
  const LayerPattern split{{{Local{3}}, {Column{5}}}};
  CHECK(split.for_head(4) == PatternUnion{Local{3}});
  CHECK(split.for_head(5) == PatternUnion{Column{5}});
}

TEST_CASE("pattern: what the factorizations reach, as the paper claims") {
  const int64_t n = 40, l = 8, c = 2;
  const Pairs all = pairs_of({Dense{}}, n);
  for (const int64_t window : {l, l + 1}) {
    CHECK(reachable({{Local{window}}, {Column{l}}}, n) == all);
    CHECK(reachable({{Column{l}}, {Local{window}}}, n) == all);
  }
  const FixedSummary last{l, c};
  CHECK(reachable({{FixedBlock{l}}, {last}}, n) == all);
  CHECK(reachable({{last}, {FixedBlock{l}}}, n) != all);
  CHECK(reachable({{last}, {FixedBlock{l}}, {last}}, n) == all);

  FixedSummary second = last;  // a sub-block that is not the last one: the tail of a block cannot leave it
  second.sub_blocks = 2;
  second.sub_block = 1;
  CHECK(reachable({{FixedBlock{l}, second}, {FixedBlock{l}, second}, {FixedBlock{l}, second}}, n) != all);

  PatternUnion heads;  // l / c distinct sub-blocks over the heads: full causal attention in one layer
  const LayerPattern layer{{{FixedBlock{l}, FixedSummary{l, c, l / c}}}};
  for (int64_t h = 0; h < l / c; ++h)
    for (const Pattern& pattern : layer.for_head(h)) heads.push_back(pattern);
  CHECK(pairs_of(heads, n) == all);

  for (int64_t i = 0; i < n; ++i) {  // split fixed heads: the first l - c rows have no summary to look at
    bool any = false;
    for (int64_t j = 0; j < n; ++j) any = any || last(i, j);
    CHECK(any == (i >= l - c));
  }
}

TEST_CASE("pattern: mean and largest number of keys at the paper's sizes") {
  const auto keys = [](const PatternUnion& patterns, int64_t n) {
    const std::vector<Part> parts = parts_of(patterns);
    int64_t sum = 0, most = 0;
    for (int64_t i = 0; i < n; ++i) {
      int64_t count = 0;
      for (const Part& part : parts) {
        const Range range = part.keys_of(i % part.view.residues, i);
        count += range.end - range.begin;
      }
      sum += count;
      most = std::max(most, count);
    }
    return std::pair(std::round(10.0 * static_cast<double>(sum) / static_cast<double>(n)) / 10, most);
  };
  CHECK(keys({Local{96}}, 3072) == std::pair(94.5, int64_t{96}));
  CHECK(keys({Column{96}}, 3072) == std::pair(16.5, int64_t{32}));
  CHECK(keys({Local{96}, Column{96}}, 3072).first == 110.0);
  CHECK(keys({FixedBlock{96}, FixedSummary{96, 32}}, 3072) == std::pair(544.5, int64_t{1088}));
  CHECK(keys({FixedBlock{128}, FixedSummary{128, 32}}, 12288) == std::pair(1584.5, int64_t{3168}));
}

TEST_CASE("pattern: text round trip") {
  for (const std::string text :
       {"dense", "local(window=96) | column(stride=96)",
        "column(stride=96), local(window=96), local(window=96), local(window=96)",
        "fixed_block(stride=128) + fixed_summary(stride=128, c=32, sub_blocks=4)",
        "dense, fixed_summary(stride=8, c=8) + local(window=1) | dense",
        "local(window=8) + global(n=2), dilated(window=4, dilation=3), longnet(w=4:16, r=1:4)"})
    CHECK(to_string(parse_attention(text)) == text);

  CHECK(to_string(parse_attention(std::string_view("densely", 5))) == "dense");  // the text ends where the view does
  CHECK(to_string(parse_attention(std::string_view("dense  ", 5))) == "dense");

  const AttentionPattern parsed =
      parse_attention("\tfixed_summary( c=8 ,stride=16 )+dense( ) |\n local(window = 3),dense");
  CHECK(parsed == AttentionPattern{{{{{FixedSummary{16, 8}, Dense{}}, {Local{3}}}}, {{{Dense{}}}}}});

  CHECK(rc::check([] {
    AttentionPattern attention;
    for (int layers = *rc::gen::inRange(1, 4); layers > 0; --layers) attention.layers.push_back(random_layer(1000, 4));
    RC_ASSERT(parse_attention(to_string(attention)) == attention);
    validate(attention, 4);
  }));
}

TEST_CASE("pattern: a mistake in the text is named") {
  const auto error = [](const char* text) { return message_of<UsageError>([=] { parse_attention(text); }); };
  CHECK(error("column(stride=0)") == "column: stride must be at least 1, got 0");
  CHECK(error("local(window=-3)") == "local: window must be at least 1, got -3");
  CHECK(error("fixed_block(stride=0)") == "fixed_block: stride must be at least 1, got 0");
  CHECK(error("fixed_summary(stride=8, c=0)") == "fixed_summary: c must be at least 1, got 0");
  CHECK(error("fixed_summary(stride=8, c=2, sub_blocks=0)") == "fixed_summary: sub_blocks must be at least 1, got 0");
  CHECK(error("fixed_summary(stride=8, c=3, sub_blocks=3)") ==
        "fixed_summary: c * sub_blocks must be at most stride, got 3 * 3 > 8");
  CHECK(error("global(n=0)") == "global: n must be at least 1, got 0");
  CHECK(error("dilated(dilation=2)") == "dilated: window is missing, as in dilated(window=128)");
  CHECK(error("dilated(window=2)") == "dilated: dilation is missing, as in dilated(dilation=128)");
  CHECK(error("dilated(window=2, dilation=0)") == "dilated: dilation must be at least 1, got 0");
  CHECK(error("dilated(window=1099511627776, dilation=2)") ==
        "dilated: window * dilation must be at most 1099511627776, got 1099511627776 * 2");
  CHECK(error("longnet(w=4:6, r=2:4)") == "longnet: each w must be a multiple of its r, got w 6 and r 4");
  CHECK(error("longnet(w=4:8, r=2)") == "longnet: w and r must have equally many numbers, got 2 and 1");
  CHECK(error("longnet(w=4)") == "longnet: r is missing, as in longnet(r=16:128)");
  CHECK(error("longnet(w=4:, r=1)") == "longnet: w must be a whole number, got ', r=1)'");
  CHECK(error("longnet(w=4:0, r=1:1)") == "longnet: w must be at least 1, got 0");
  CHECK(error("local(window=4:8)") == "local: expected ',' or ')', got ':8)'");
  CHECK(error("colum(stride=8)") == "attention: no pattern is called 'colum'; did you mean 'column'?");
  CHECK(error("fixed(stride=8)")
            .starts_with(
                "attention: no pattern is called 'fixed'; there are dense, local, dilated, column, fixed_block, "));
  CHECK(error("local(widow=8)") == "local: no field is called 'widow'; did you mean 'window'?");
  CHECK(error("dense(stride=8)") == "dense: no field is called 'stride'");
  CHECK(error("column") == "column: stride is missing, as in column(stride=128)");
  CHECK(error("fixed_summary(stride=8)") == "fixed_summary: c is missing, as in fixed_summary(c=128)");
  CHECK(error("local(window=8, window=9)") == "local: window is given twice");
  CHECK(error("local(window=x)") == "local: window must be a whole number, got 'x)'");
  CHECK(error("column(stride=1099511627777)") == "column: stride must be at most 1099511627776, got 1099511627777");
  CHECK(error("local(window=99999999999999999999)") == "local: window must be a whole number, got '999999999999'");
  CHECK(error("local(window=8") == "local: expected ',' or ')', got the end");
  CHECK(error("local(window 8)") == "local: expected '=' after window, got '8)'");
  CHECK(error("local(=8)") == "attention: expected a field, got '=8)'");
  CHECK(error("") == "attention: expected a pattern, got the end");
  CHECK(error("dense +") == "attention: expected a pattern, got the end");
  CHECK(error("dense, , dense") == "attention: expected a pattern, got ', dense'");
  CHECK(error("dense dense") == "attention: expected ',', '|', '+' or the end, got 'dense'");
  CHECK(error("local(window=8.5)") == "local: expected ',' or ')', got '.5)'");
}

TEST_CASE("pattern: constructing one checks its fields") {
  CHECK(message_of<UsageError>([] { Pattern(Column{0}); }) == "column: stride must be at least 1, got 0");
  Pattern(Dilated{kLargestField / 2, 2});  // the largest window * dilation
  CHECK(message_of<UsageError>([] { Pattern(Local{}); }) == "local: window must be at least 1, got 0");
  CHECK(message_of<UsageError>([] { Pattern(LongNet{}); }) == "longnet: w must have at least one number, got none");
  CHECK(message_of<UsageError>([] {
          Pattern(FixedSummary{8, 9});
        }) == "fixed_summary: c * sub_blocks must be at most stride, got 9 * 1 > 8");
}

TEST_CASE("pattern: validate checks layers and heads") {
  const auto error = [](const AttentionPattern& attention, int64_t n_heads) {
    return message_of<UsageError>([&] { validate(attention, n_heads); });
  };
  CHECK(error(parse_attention("dense"), 0) == "attention: n_heads must be at least 1, got 0");
  CHECK(error({}, 1) == "attention: needs at least one layer's pattern, got none");
  CHECK(error({{LayerPattern{}}}, 1) == "attention: a layer needs at least one pattern, got none");
  CHECK(error({{LayerPattern{{{}}}}}, 1) == "attention: a head needs at least one pattern, got none");
  CHECK(error(parse_attention("local(window=2) | dense"), 3) ==
        "attention: n_heads must be a multiple of the 2 patterns that '|' splits the heads over, got 3");
  CHECK(error(parse_attention("dense, fixed_summary(stride=8, c=2, sub_blocks=4)"), 6) ==
        "fixed_summary: n_heads must be a multiple of sub_blocks, got 6 heads and sub_blocks 4");
  validate(parse_attention("fixed_summary(stride=8, c=2, sub_blocks=4)"), 8);
}

namespace {

/// A pattern that a user might add.
struct EvenFromTwo {
  int64_t start = 0;

  static constexpr std::string_view name = "even_from_two";
  static std::vector<Field<EvenFromTwo>> fields() { return {{"start", &EvenFromTwo::start, false}}; }
  bool operator()(int64_t i, int64_t j) const { return j <= i && (i - j) % 2 == 0; }
  std::vector<View> views() const { return Column{2}.views(); }
  friend bool operator==(const EvenFromTwo&, const EvenFromTwo&) = default;
};

}  // namespace

TEST_CASE("pattern: a registered pattern is read like the built-in ones, and its name is taken") {
  CHECK_THROWS_AS(parse_attention("even_from_two"), UsageError);
  register_pattern<EvenFromTwo>();
  CHECK(parse_attention("even_from_two(start=3)").layers[0].heads[0] == PatternUnion{EvenFromTwo{3}});
  CHECK(message_of<Error>([] { register_pattern<EvenFromTwo>(); }) ==
        "register_pattern: a pattern called 'even_from_two' is known already");
  CHECK(message_of<Error>([] { register_pattern<Local>(); }) ==
        "register_pattern: a pattern called 'local' is known already");
}

TEST_CASE("pattern: a key of LongNet counts once for each of its segments, and merging adds only what it lacks") {
  const LongNet longnet{{4, 8}, {1, 2}};
  CHECK(multiplicity({longnet}, 6, 4) == 2);
  CHECK(multiplicity({longnet}, 6, 5) == 1);
  CHECK(multiplicity({longnet}, 6, 2) == 1);
  CHECK(multiplicity({longnet}, 6, 3) == 0);
  CHECK(longnet(6, 2));
  CHECK_FALSE(longnet(6, 3));
  CHECK(Pattern(longnet)(6, 2));
  CHECK_FALSE(Pattern(longnet)(6, 3));
  CHECK(multiplicity({longnet, LongNet{{2, 2, 2}, {1, 1, 1}}}, 6, 6) == 2);
  CHECK(multiplicity({Dense{}, longnet, Local{4}}, 6, 4) == 2);
  CHECK(multiplicity({Dense{}, longnet, Local{4}}, 6, 3) == 1);
}

TEST_CASE("text distance") {
  CHECK(edit_distance("", "abc") == 3);
  CHECK(edit_distance("kitten", "sitting") == 3);
  CHECK(suggestion("windo", {"stride", "window"}) == "; did you mean 'window'?");
  CHECK(suggestion("zzzz", {"stride", "window"}).empty());
}

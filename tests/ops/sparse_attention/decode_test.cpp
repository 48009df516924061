#include "ops/sparse_attention/decode.h"

#include <doctest/doctest.h>
#include <rapidcheck.h>

#include <cmath>
#include <limits>

#include "core/allocator.h"
#include "core/rng.h"
#include "tests/ops/sparse_attention/random_patterns.h"

using namespace lacuna;

namespace {

LayerPattern layer(const char* text) { return parse_attention(text).layers[0]; }

Tensor random_rows(const Shape& shape, uint64_t seed) {
  const Tensor x = empty(shape, DType::f64);
  const Rng rng(seed, RandomPurpose::test);
  for (int64_t e = 0; e < x.numel(); ++e) x.data<double>()[e] = rng.normal({}, e);
  return x;
}

/// Output [batch, n_heads * d_v] of query i by the predicate; q, k, v [n, batch, n_heads * width].
std::vector<double> by_predicate(const LayerPattern& pattern, int64_t n_heads, int64_t i, const Tensor& q,
                                 const Tensor& k, const Tensor& v) {
  const int64_t batch = q.dim(1), d_qk = q.dim(2) / n_heads, d_v = v.dim(2) / n_heads;
  std::vector<double> o(static_cast<size_t>(batch * n_heads * d_v));
  for (int64_t bh = 0; bh < batch * n_heads; ++bh) {
    const auto at = [&](int64_t position, int64_t width) { return (position * batch * n_heads + bh) * width; };
    double sum = 0;
    for (int64_t j = 0; j <= i; ++j) {
      const int64_t count = multiplicity(pattern.for_head(bh % n_heads), i, j);
      if (count == 0) continue;
      double s = 0;
      for (int64_t d = 0; d < d_qk; ++d) s += q.data<double>()[at(i, d_qk) + d] * k.data<double>()[at(j, d_qk) + d];
      const double p = static_cast<double>(count) * std::exp(s / std::sqrt(static_cast<double>(d_qk)));
      sum += p;
      for (int64_t d = 0; d < d_v; ++d) o[static_cast<size_t>(bh * d_v + d)] += p * v.data<double>()[at(j, d_v) + d];
    }
    for (int64_t d = 0; d < d_v && sum > 0; ++d) o[static_cast<size_t>(bh * d_v + d)] /= sum;
  }
  return o;
}

TEST_CASE("DecodeCache: equals dense attention under the predicate, for random patterns, and takes what rows_of says") {
  CHECK(rc::check([] {
    const int64_t n = *rc::gen::inRange<int64_t>(1, 60), batch = *rc::gen::inRange<int64_t>(1, 3);
    const int64_t n_heads = *rc::gen::inRange<int64_t>(1, 7), d_qk = *rc::gen::inRange<int64_t>(1, 6), d_v = 3;
    const LayerPattern pattern = random_layer(20, n_heads);
    RC_LOG() << to_string(AttentionPattern{{pattern}}) << " n " << n << " heads " << n_heads;
    const Tensor q = random_rows({n, batch, n_heads * d_qk}, 1), k = random_rows({n, batch, n_heads * d_qk}, 2),
                 v = random_rows({n, batch, n_heads * d_v}, 3);
    DecodeCache cache(pattern, n_heads, n, batch, d_qk, d_v, DType::f64);
    RC_ASSERT(cache.bytes() == batch * DecodeCache::rows_of(pattern, n_heads, n) * (d_qk + d_v) * 8);
    for (int64_t i = 0; i < n; ++i) {
      const auto row = [&](const Tensor& x) { return x.slice(i, i + 1).reshape({batch, x.dim(2)}); };
      RC_ASSERT(cache.length() == i);
      cache.append(row(k), row(v));
      const std::vector<double> got = to_vector<double>(cache.attend(row(q)));
      const std::vector<double> expected = by_predicate(pattern, n_heads, i, q, k, v);
      for (size_t e = 0; e < got.size(); ++e) RC_ASSERT(std::abs(got[e] - expected[e]) <= 1e-12);
    }
  }));
}

/// The most positions below n that one head ever has in reach: at some query t < n, those that t or a later query
/// attends, were the sequence to go on.
int64_t most_in_reach(const PatternUnion& patterns, int64_t n) {
  std::vector<int64_t> last(static_cast<size_t>(n), -1);  // query that reads the position
  for (int64_t i = 0; i < 2 * n + 20; ++i)
    for (int64_t j = 0; j < n; ++j)
      if (attends(patterns, i, j)) last[static_cast<size_t>(j)] = i;
  int64_t most = 0;
  for (int64_t t = 0; t < n; ++t) {
    int64_t count = 0;
    for (int64_t j = 0; j <= t; ++j) count += last[static_cast<size_t>(j)] >= t;
    most = std::max(most, count);
  }
  return most;
}

TEST_CASE("DecodeCache: one pattern keeps exactly the positions in reach") {
  CHECK(rc::check([] {
    const int64_t n = *rc::gen::inRange<int64_t>(1, 60);
    const LayerPattern pattern{{{random_pattern(20, 1)}}};
    const PatternUnion head = pattern.for_head(0);
    const std::vector<Part> parts = parts_of(head);
    RC_PRE(parts.size() == 1U);
    const int64_t rings = parts[0].view.groups(n);  // of equal length, so all but the first may have a row to spare
    const int64_t rows = DecodeCache::rows_of(pattern, 1, n), needed = most_in_reach(head, n);
    RC_LOG() << to_string(AttentionPattern{{pattern}}) << " n " << n;
    RC_ASSERT(needed <= rows);
    if (!head.front().get_if<AnyBand>())  // its key_end may leave rows of a window unused
      RC_ASSERT(rows < needed + rings);
  }));
}

TEST_CASE("DecodeCache: positions kept of 1000") {
  const auto rows = [](const char* text, int64_t n_heads = 1) {
    return DecodeCache::rows_of(layer(text), n_heads, 1000);
  };
  CHECK(rows("dense") == 1000);
  CHECK(rows("local(window=40)") == 40);
  CHECK(rows("local(window=4000)") == 1000);
  CHECK(rows("column(stride=40)") == 1000);
  CHECK(rows("fixed_block(stride=40)") == 40);
  CHECK(rows("fixed_summary(stride=40, c=4)") == 100);
  CHECK(rows("fixed_block(stride=40) + fixed_summary(stride=40, c=4)") ==
        40 + 96);                                               // of the last block, never as a summary
  CHECK(rows("local(window=40) + column(stride=40)") == 1000);  // the last 40 are never read as a column
  CHECK(rows("column(stride=40) + dense") == 1000);
  CHECK(rows("local(window=40) | column(stride=40)", 4) == 2 * (40 + 1000));
}

TEST_CASE("DecodeCache: appending takes no memory") {
  DecodeCache cache(layer("local(window=3) | column(stride=2)"), 2, 50, 1, 4, 4, DType::f32);
  const int64_t bytes = cache.bytes();
  const auto in_use = [] {
    const MemoryStats stats = Allocator::of(kCpu).stats();
    int64_t sum = 0;
    for (const int64_t current : stats.current) sum += current;
    return sum;
  };
  const Tensor row = zeros({1, 8}, DType::f32);
  const int64_t before = in_use();
  for (int i = 0; i < 50; ++i) cache.append(row, row);
  CHECK(in_use() == before);
  CHECK(cache.bytes() == bytes);
  CHECK(bytes == (3 + 50) * 8 * 4);
}

TEST_CASE("DecodeCache: bad arguments and too many positions are named") {
  const LayerPattern dense = layer("dense");
  const auto make = [&](int64_t n_heads, int64_t n_ctx, DType dtype) {
    return DecodeCache(dense, n_heads, n_ctx, /*batch=*/2, /*d_qk=*/4, /*d_v=*/3, dtype);
  };
  CHECK_THROWS_WITH_AS(make(0, 5, DType::f32), "DecodeCache: n_heads must be at least 1, got 0", Error);
  CHECK_THROWS_WITH_AS(make(1, 0, DType::f32), "DecodeCache: n_ctx must be at least 1, got 0", Error);
  CHECK_THROWS_WITH_AS(make(1, 5, DType::i32), "DecodeCache: dtype must be f32 or f64, got i32", Error);
  CHECK_THROWS_AS(DecodeCache(layer("dense | local(window=2)"), 3, 5, 1, 4, 4, DType::f32), UsageError);

  DecodeCache cache = make(1, 2, DType::f32);
  const auto f32 = [](const Shape& shape) { return zeros(shape, DType::f32); };
  CHECK_THROWS_WITH_AS(cache.attend(f32({2, 4})), "DecodeCache: append a position before attending from it", Error);
  CHECK_THROWS_WITH_AS(cache.append(f32({1, 4}), f32({2, 3})), "DecodeCache: k must be [2, 4], got [1, 4]", Error);
  CHECK_THROWS_WITH_AS(cache.append(f32({2, 4}), f32({2, 4})), "DecodeCache: v must be [2, 3], got [2, 4]", Error);
  CHECK_THROWS_WITH_AS(cache.append(zeros({2, 4}, DType::f64), f32({2, 3})), "DecodeCache: k must be f32, got f64",
                       Error);
  CHECK(cache.length() == 0);
  cache.append(f32({2, 4}), f32({2, 3}));
  CHECK_THROWS_WITH_AS(cache.attend(f32({2, 3})), "DecodeCache: q must be [2, 4], got [2, 3]", Error);
  cache.append(f32({2, 4}), f32({2, 3}));
  CHECK_THROWS_WITH_AS(cache.append(f32({2, 4}), f32({2, 3})), "DecodeCache: made for 2 positions, all taken", Error);
}

}  // namespace

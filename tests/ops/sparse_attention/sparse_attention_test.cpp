#include "ops/sparse_attention/sparse_attention.h"

#include <doctest/doctest.h>
#include <hwy/targets.h>
#include <omp.h>
#include <rapidcheck.h>

#include <cmath>
#include <cstring>

#include "autograd/gradcheck.h"
#include "core/allocator.h"
#include "ops/sparse_attention/decode.h"
#include "ops/sparse_attention/kernels.h"
#include "ops/sparse_attention/tiles_cpu.h"
#include "tests/ops/sparse_attention/dense_masked.h"
#include "tests/ops/sparse_attention/random_patterns.h"

using namespace lacuna;
using namespace lacuna::test;

namespace {

/// Memory that the allocator hands out next for tensors of these shapes holds NaN, not zeros by chance.
void leave_nan(const Shape& shape_qk, const Shape& shape_v, DType dtype) {
  std::vector<Tensor> freed_together;
  for (int i = 0; i < 3; ++i)
    for (const Shape& shape : {shape_qk, shape_v})
      for (const DType d : {dtype, DType::f32}) freed_together.push_back(full(shape, d, std::nan("")));
}

template <class T>
Result<T> run(const Case& c) {
  const Inputs<T> in(c);
  const Shape shape_qk{c.batch, c.n, c.n_heads * c.d_qk}, shape_v{c.batch, c.n, c.n_heads * c.d_v};
  const Variable q(from_vector(in.q, shape_qk), true), k(from_vector(in.k, shape_qk), true),
      v(from_vector(in.v, shape_v), true);
  leave_nan(shape_qk, shape_v, dtype_of<T>);
  const Variable o = sparse_attention(q, k, v, c.pattern, c.n_heads);
  leave_nan(shape_qk, shape_v, dtype_of<T>);
  backward(o, from_vector(in.d_o, shape_v));
  return {to_vector<T>(o.value()), to_vector<T>(q.grad()), to_vector<T>(k.grad()), to_vector<T>(v.grad())};
}

/// f32 arithmetic: a few roundings, as few as the random walk of a sum of some hundred terms and the exponential (2e-7)
/// leave. Backward reads the o that was rounded to T, so dq and dk, whose terms hold d_o . o, err by that much more.
template <class T>
bool is_exact(const Case& c) {
  const double tolerance = std::is_same_v<T, double> ? 1e-13 : 8 * 1.2e-7;
  const double with_o = sizeof(T) == 2 ? tolerance + kRounding<T>.relative : tolerance;
  const Result<T> ours = run<T>(c);
  const Exact exact = dense_masked<T>(c);
  return near(ours.o, exact.value.o, exact.size.o, tolerance) && near(ours.dq, exact.value.dq, exact.size.dq, with_o) &&
         near(ours.dk, exact.value.dk, exact.size.dk, with_o) &&
         near(ours.dv, exact.value.dv, exact.size.dv, tolerance);
}

/// Patterns in every kind of composition, with n across slices, tiles and vectors.
std::vector<Case> chosen_cases() {
  return {{1, 1, 1, 1, 1, layer("dense")},
          {1, 600, 1, 16, 8, layer("dense")},
          {1, 700, 1, 8, 16, layer("local(window=128)")},
          {1, 530, 1, 5, 3, layer("local(window=300)")},
          {2, 257, 2, 16, 16, layer("local(window=33) | column(stride=17)")},
          {1, 600, 2, 8, 8, layer("local(window=25) + column(stride=25)")},
          {1, 640, 4, 8, 8, layer("fixed_block(stride=64) + fixed_summary(stride=64, c=8, sub_blocks=4)")},
          {1, 601, 1, 20, 33, layer("fixed_block(stride=100) + fixed_summary(stride=100, c=7)")},
          {1, 300, 2, 4, 12, layer("column(stride=10) + fixed_summary(stride=30, c=4, sub_blocks=2)")},
          {1, 1100, 2, 8, 8, layer("fixed_summary(stride=8, c=2) | fixed_block(stride=300)")},
          {1, 50, 1, 64, 128, layer("column(stride=200)")},
          {1, 40, 1, 4, 4, layer("column(stride=1099511627776) + local(window=1099511627776)")},  // the largest
          {1, 40, 1, 4, 4, layer("column(stride=1099511627776)")},
          {1, 48, 1, 3, 2, layer("fixed_block(stride=47) + column(stride=2)")},  // one of two groups has all the keys
          {1, 97, 3, 17, 1, layer("dense + local(window=5) + column(stride=3)")},
          {1, 1100, 1, 8, 8, layer("global(n=40)")},
          {1, 1100, 1, 8, 8, layer("global(n=300) + local(window=33)")},
          {1, 701, 2, 16, 8, layer("global(n=5) | dilated(window=40, dilation=7)")},
          {1, 900, 1, 8, 8, layer("dilated(window=40, dilation=7) + local(window=20) + global(n=9)")},
          {1, 1300, 1, 8, 8, layer("longnet(w=64:512, r=1:8)")},
          {1, 1301, 1, 8, 8, layer("longnet(w=300:1000, r=3:5)")},
          {1, 1301, 2, 8, 8, layer("longnet(w=64:600, r=1:2) + local(window=50) + global(n=270)")},
          {1, 1100, 1, 8, 8, layer("fixed_block(stride=300) + global(n=280) + column(stride=30)")},
          {1, 650, 1, 8, 8, layer("longnet(w=60:300, r=1:5) + longnet(w=100:100, r=1:2)")},  // the first one's counts
          {1, 70, 1, 8, 8, LayerPattern{{{AnyBand{.from = 4}}}}},               // keys of no group
          {1, 300, 1, 256, 40, layer("local(window=130) + column(stride=9)")},  // the widest heads
          {2, 190, 2, 80, 256, layer("fixed_block(stride=60) + fixed_summary(stride=60, c=8, sub_blocks=2)")}};
}

}  // namespace

TEST_CASE("sparse_attention: f64 equals dense attention under the mask") {
  CHECK(rc::check([] {
    const int64_t n_heads = *rc::gen::inRange(1, 5);
    const Case c{*rc::gen::inRange(1, 3), *rc::gen::inRange(1, 40), n_heads,
                 *rc::gen::inRange(1, 6), *rc::gen::inRange(1, 6),  random_layer(16, n_heads)};
    RC_ASSERT(is_exact<double>(c));
  }));
}

TEST_CASE("sparse_attention: f32 equals f64 dense attention under the mask") {
  for (const Case& c : chosen_cases()) {
    CAPTURE(to_string(AttentionPattern{{c.pattern}}));
    CHECK(is_exact<float>(c));
  }
  CHECK(rc::check([] {
    const int64_t n_heads = *rc::gen::inRange(1, 5);
    const Case c{*rc::gen::inRange(1, 3),  *rc::gen::inRange(1, 150), n_heads,
                 *rc::gen::inRange(1, 20), *rc::gen::inRange(1, 20),  random_layer(70, n_heads)};
    RC_ASSERT(is_exact<float>(c));
  }));
}

TEST_CASE_TEMPLATE("sparse_attention: bf16 and f16 are rounded only where they are stored", T, bf16, f16) {
  for (const Case& c : chosen_cases()) {
    CAPTURE(to_string(AttentionPattern{{c.pattern}}));
    CHECK(is_exact<T>(c));
  }
  CHECK(rc::check([] {
    const int64_t n_heads = *rc::gen::inRange(1, 5);
    const Case c{*rc::gen::inRange(1, 3),  *rc::gen::inRange(1, 150), n_heads,
                 *rc::gen::inRange(1, 40), *rc::gen::inRange(1, 40),  random_layer(70, n_heads)};
    RC_ASSERT(is_exact<T>(c));
  }));
}

TEST_CASE_TEMPLATE("sparse_attention: long sequences equal f64 dense attention under the mask", T, float, bf16, f16) {
  const auto random_case = rc::gen::exec([] {
    const int64_t n_heads = *rc::gen::inRange(1, 4);
    return Case{*rc::gen::inRange(1, 3),  *rc::gen::inRange(300, 1500), n_heads,
                *rc::gen::inRange(1, 70), *rc::gen::inRange(1, 70),     random_layer(500, n_heads)};
  });
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    const Case c = random_case(rc::Random(seed), 100).value();
    CAPTURE(to_string(AttentionPattern{{c.pattern}}));
    CAPTURE(c.n);
    CHECK(is_exact<T>(c));
  }
  CHECK(is_exact<T>({1, 3001, 1, 8, 8, layer("local(window=57) + column(stride=55) + global(n=7)")}));
}

TEST_CASE("sparse_attention: every instruction set gives the answer") {
  const std::vector<Case> cases = chosen_cases();
  std::vector<std::string> used;
  for (const int64_t target : {HWY_STATIC_TARGET, HWY_SSE4, HWY_AVX2, HWY_AVX3, HWY_NEON}) {
    hwy::SetSupportedTargetsForTest(0);
    if ((hwy::SupportedTargets() & target) == 0) continue;
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().DeInit();
    const std::string name = cpu::tile_target();
    CAPTURE(name);
    CHECK(name == std::string(hwy::TargetName(target)));
    for (size_t i = 1; i < cases.size(); i += 2) CHECK(is_exact<float>(cases[i]));
    for (size_t i = 2; i < cases.size(); i += 4) {
      CHECK(is_exact<bf16>(cases[i]));
      CHECK(is_exact<f16>(cases[i]));
    }
    used.push_back(name);
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().DeInit();
  CHECK(!used.empty());
}

TEST_CASE("sparse_attention: gradients match finite differences") {
  for (const char* text : {"dense", "local(window=3)", "column(stride=3)", "fixed_block(stride=4)",
                           "fixed_summary(stride=4, c=1, sub_blocks=2)", "local(window=2) + column(stride=3)",
                           "fixed_block(stride=4) | fixed_summary(stride=4, c=2)", "dilated(window=2, dilation=3)",
                           "global(n=3)", "longnet(w=4:9, r=1:3)", "longnet(w=4:6, r=1:2) + global(n=2)"}) {
    CAPTURE(text);
    const Case c{2, 9, 2, 3, 2, layer(text)};
    const Inputs<double> in(c);
    const Variable q(from_vector(in.q, {2, 9, 6}), true), k(from_vector(in.k, {2, 9, 6}), true),
        v(from_vector(in.v, {2, 9, 4}), true);
    expect_gradients({q, k, v}, [&] { return sparse_attention(q, k, v, c.pattern, c.n_heads); });
  }
}

TEST_CASE_TEMPLATE("sparse_attention: the same bits for any number of threads and any run", T, float, bf16, double) {
  const int threads = omp_get_max_threads();
  for (const Case& c : chosen_cases()) {
    CAPTURE(to_string(AttentionPattern{{c.pattern}}));
    omp_set_num_threads(1);
    const Result<T> one = run<T>(c);
    for (const int count : {2, 3, 2}) {
      omp_set_num_threads(count);
      const Result<T> several = run<T>(c);
      CHECK(same_bits(one, several));
    }
  }
  omp_set_num_threads(threads);
}

TEST_CASE_TEMPLATE("sparse_attention: q, k and v side by side give the same bits as apart", T, float, double, bf16,
                   f16) {
  for (const Case& c : chosen_cases()) {
    CAPTURE(to_string(AttentionPattern{{c.pattern}}));
    const Inputs<T> in(c);
    const Shape shape{c.batch, c.n, c.n_heads * (2 * c.d_qk + c.d_v)}, shape_v{c.batch, c.n, c.n_heads * c.d_v};
    const Variable qkv(from_vector(side_by_side(c, in.q, in.k, in.v), shape), true);
    leave_nan(shape, shape_v, dtype_of<T>);
    const Variable o = sparse_attention(qkv, c.d_qk, c.pattern, c.n_heads);
    leave_nan(shape, shape_v, dtype_of<T>);
    backward(o, from_vector(in.d_o, shape_v));
    const Result<T> expected = run<T>(c);
    CHECK(same_bits(to_vector<T>(o.value()), expected.o));
    CHECK(same_bits(to_vector<T>(qkv.grad()), side_by_side(c, expected.dq, expected.dk, expected.dv)));
  }
}

TEST_CASE_TEMPLATE("sparse_attention: a query without keys gives zeros, lse = -inf and no gradient", T, float, double,
                   bf16, f16) {
  using Statistic = std::conditional_t<std::is_same_v<T, double>, double, float>;
  for (const int64_t n : {5, 48, 70, 700}) {  // rows 0..47 come before the first summary column; with n = 5, all rows
    const int64_t d = 4, without = std::min<int64_t>(n, 48);
    CAPTURE(n);
    const Case c{1, n, 1, d, d, layer("fixed_summary(stride=64, c=16)")};
    const Result<T> r = run<T>(c);
    const auto zero = [](T x) { return static_cast<double>(x) == 0; };
    for (int64_t x = 0; x < n * d; ++x) {
      if (x < without * d) CHECK((zero(r.o[x]) && zero(r.dq[x]) && zero(r.dk[x]) && zero(r.dv[x])));
      for (const std::vector<T>* gradient : {&r.dq, &r.dk, &r.dv})
        CHECK(std::isfinite(static_cast<double>((*gradient)[x])));
    }
    if (n > without) CHECK(!zero(r.o[without * d]));

    const Inputs<T> in(c);
    const AttentionSaved saved{from_vector(in.q, {1, n, d}), from_vector(in.k, {1, n, d}),
                               from_vector(in.v, {1, n, d}), empty({1, n, d}, dtype_of<T>),
                               empty({1, 1, n}, dtype_of<Statistic>)};
    cpu::attention_forward(current_stream(kCpu), {1, n, 1, d, d, {parts_of(c.pattern.for_head(0))}}, saved);
    for (int64_t i = 0; i < n; ++i) {
      const Statistic lse = saved.lse.template data<Statistic>()[i];
      CHECK((i < without ? lse == -std::numeric_limits<Statistic>::infinity() : std::isfinite(lse)));
    }
  }
}

TEST_CASE("sparse_attention: a later token changes nothing before it") {
  for (Case c : chosen_cases()) {
    if (c.n < 2) continue;
    CAPTURE(to_string(AttentionPattern{{c.pattern}}));
    const Inputs<float> in(c);
    const int64_t at = c.n * 2 / 3, row_qk = c.n_heads * c.d_qk, row_v = c.n_heads * c.d_v;
    const auto forward = [&](float added) {
      Inputs<float> changed = in;
      for (int64_t x = at * row_qk; x < (at + 1) * row_qk; ++x) changed.q[x] += added, changed.k[x] += added;
      for (int64_t x = at * row_v; x < (at + 1) * row_v; ++x) changed.v[x] += added;
      const Shape shape_qk{c.batch, c.n, row_qk}, shape_v{c.batch, c.n, row_v};
      return to_vector<float>(sparse_attention(Variable(from_vector(changed.q, shape_qk)),
                                               Variable(from_vector(changed.k, shape_qk)),
                                               Variable(from_vector(changed.v, shape_v)), c.pattern, c.n_heads)
                                  .value());
    };
    const std::vector<float> before = forward(0.0f), after = forward(1.0f);
    CHECK(std::memcmp(before.data(), after.data(), static_cast<size_t>(at * row_v) * sizeof(float)) == 0);
    CHECK(before != after);
  }
}

TEST_CASE("sparse_attention: a NaN of the model is not hidden") {
  Case c{1, 40, 1, 8, 8, layer("local(window=8)")};
  Inputs<float> in(c);
  in.q[20 * 8] = std::nanf("");
  const Shape shape{1, 40, 8};
  const Variable o = sparse_attention(Variable(from_vector(in.q, shape)), Variable(from_vector(in.k, shape)),
                                      Variable(from_vector(in.v, shape)), c.pattern, 1);
  CHECK(std::isnan(o.value().data<float>()[20 * 8]));
  CHECK(std::isfinite(o.value().data<float>()[21 * 8]));
}

TEST_CASE("sparse_attention: what is not finite stays with the queries and keys that meet it") {
  constexpr int64_t kN = 100, kAt = 50, kWindow = 20, kWidth = 8;
  const LayerPattern pattern = layer("local(window=20)");
  const Inputs<float> clean({1, kN, 1, kWidth, kWidth, pattern});
  const auto results = [&](const Inputs<float>& in) {
    const Shape shape{1, kN, kWidth};
    const Variable q(from_vector(in.q, shape), true), k(from_vector(in.k, shape), true),
        v(from_vector(in.v, shape), true);
    const Variable o = sparse_attention(q, k, v, pattern, 1);
    backward(o, from_vector(in.d_o, shape));
    return Result<float>{to_vector<float>(o.value()), to_vector<float>(q.grad()), to_vector<float>(k.grad()),
                         to_vector<float>(v.grad())};
  };
  const auto same = [](const std::vector<float>& a, const std::vector<float>& b, int64_t begin, int64_t end) {
    return std::equal(a.begin() + begin * kWidth, a.begin() + end * kWidth, b.begin() + begin * kWidth);
  };
  const Result<float> expected = results(clean);
  for (const float bad : {std::nanf(""), HUGE_VALF}) {
    for (std::vector<float> Inputs<float>::*of_query : {&Inputs<float>::q, &Inputs<float>::d_o}) {
      Inputs<float> in = clean;
      (in.*of_query)[kAt * kWidth] = bad;
      const Result<float> r = results(in);
      for (const auto& [ours, theirs] : {std::pair(&r.o, &expected.o), std::pair(&r.dq, &expected.dq)}) {
        CHECK(same(*ours, *theirs, 0, kAt));
        CHECK(same(*ours, *theirs, kAt + 1, kN));
      }
      for (const auto& [ours, theirs] : {std::pair(&r.dk, &expected.dk), std::pair(&r.dv, &expected.dv)}) {
        CHECK(same(*ours, *theirs, 0, kAt - kWindow + 1));
        CHECK(same(*ours, *theirs, kAt + 1, kN));
      }
    }
    for (std::vector<float> Inputs<float>::*of_key : {&Inputs<float>::k, &Inputs<float>::v}) {
      Inputs<float> in = clean;
      (in.*of_key)[kAt * kWidth] = bad;
      const Result<float> r = results(in);
      for (const auto& [ours, theirs] : {std::pair(&r.o, &expected.o), std::pair(&r.dq, &expected.dq)}) {
        CHECK(same(*ours, *theirs, 0, kAt));
        CHECK(same(*ours, *theirs, kAt + kWindow, kN));
      }
      CHECK(same(r.dv, expected.dv, 0, kAt - kWindow + 1));
      CHECK(same(r.dk, expected.dk, 0, kAt - kWindow + 1));
      CHECK(same(r.dv, expected.dv, kAt + kWindow, kN));
    }
  }
}

TEST_CASE("sparse_attention: large scores stay finite") {
  for (const char* text : {"local(window=10) + column(stride=10)", "dense"}) {  // keys behind masks, and before them
    CAPTURE(text);
    const Case c{1, 64, 1, 4, 4, layer(text)};
    Inputs<float> in(c);
    for (float& x : in.q) x *= 1e4f;
    for (float& x : in.k) x *= 1e4f;
    const Shape shape{1, 64, 4};
    const Variable q(from_vector(in.q, shape), true), k(from_vector(in.k, shape), true),
        v(from_vector(in.v, shape), true);
    const Variable o = sparse_attention(q, k, v, c.pattern, 1);
    backward(o, from_vector(in.d_o, shape));
    for (const Tensor& t : {o.value(), q.grad(), k.grad(), v.grad()})
      for (const float x : to_vector<float>(t)) CHECK(std::isfinite(x));
  }
}

TEST_CASE_TEMPLATE("DecodeCache: every row is that of the training forward", T, float, double) {
  for (const Case& c : chosen_cases()) {
    if (c.n > 620 || c.d_v > 64) continue;
    CAPTURE(to_string(AttentionPattern{{c.pattern}}));
    const Inputs<T> in(c);
    const std::vector<T> o = run<T>(c).o;
    const int64_t row_qk = c.n_heads * c.d_qk, row_v = c.n_heads * c.d_v;
    const auto row_of = [&](const std::vector<T>& x, int64_t i, int64_t width) {
      std::vector<T> row;
      for (int64_t b = 0; b < c.batch; ++b)
        row.insert(row.end(), x.begin() + (b * c.n + i) * width, x.begin() + (b * c.n + i + 1) * width);
      return from_vector(row, {c.batch, width});
    };
    DecodeCache cache(c.pattern, c.n_heads, c.n, c.batch, c.d_qk, c.d_v, dtype_of<T>);
    double worst = 0;
    for (int64_t i = 0; i < c.n; ++i) {
      cache.append(row_of(in.k, i, row_qk), row_of(in.v, i, row_v));
      const std::vector<T> row = to_vector<T>(cache.attend(row_of(in.q, i, row_qk)));
      for (int64_t b = 0; b < c.batch; ++b)
        for (int64_t x = 0; x < row_v; ++x)
          worst = std::max<double>(worst, std::abs(row[b * row_v + x] - o[(b * c.n + i) * row_v + x]));
    }
    CHECK(worst <= (std::is_same_v<T, float> ? 2e-5 : 1e-13));
  }
}

TEST_CASE("sparse_attention: memory besides inputs and outputs grows no faster than n") {
  const auto workspace = [](int64_t n) {
    Allocator::of(kCpu).reset_peak();
    run<float>({1, n, 1, 4, 4, layer("local(window=40) + column(stride=40)")});
    return Allocator::of(kCpu).stats().peak[static_cast<size_t>(MemoryCategory::workspace)];
  };
  CHECK(workspace(4000) <= 2 * workspace(2000));
}

TEST_CASE("sparse_attention: bad arguments are named") {
  const auto f32 = [](const Shape& shape) { return Variable(zeros(shape, DType::f32)); };
  const LayerPattern dense = layer("dense");
  const auto expect = [&](const Variable& q, const Variable& k, const Variable& v, int64_t n_heads,
                          const char* message) {
    CHECK_THROWS_WITH_AS(sparse_attention(q, k, v, dense, n_heads), message, Error);
  };
  expect(f32({2, 4}), f32({2, 4}), f32({2, 4}), 1,
         "sparse_attention: q must be [batch, n_ctx, n_heads * d_qk], got [2, 4]");
  expect(f32({1, 2, 4}), f32({1, 3, 4}), f32({1, 2, 4}), 1,
         "sparse_attention: k must have the shape of q, [1, 2, 4], got [1, 3, 4]");
  expect(f32({1, 2, 4}), f32({1, 2, 4}), f32({1, 3, 4}), 1,
         "sparse_attention: v must be [batch, n_ctx, n_heads * d_v] with the batch and n_ctx of q, [1, 2, 4], got [1, "
         "3, 4]");
  expect(f32({1, 2, 4}), f32({1, 2, 4}), f32({1, 2, 4}), 3,
         "sparse_attention: the last dimension of q and k must be a positive multiple of n_heads = 3, got [1, 2, 4]");
  const Variable i32(zeros({1, 2, 4}, DType::i32));
  expect(i32, i32, i32, 1, "sparse_attention: q, k and v must be f32, bf16, f16 or f64, got i32");
  CHECK_THROWS_AS(sparse_attention(f32({1, 2, 4}), f32({1, 2, 4}), Variable(zeros({1, 2, 4}, DType::f64)), dense, 1),
                  Error);
  CHECK_THROWS_WITH_AS(sparse_attention(f32({1, 2, 8}), 2, dense, 2),
                       "sparse_attention: qkv must be [batch, n_ctx, n_heads * (2 d_qk + d_v)] with n_heads = 2, d_qk "
                       "= 2 and d_v of 1 or more, got [1, 2, 8]",
                       Error);
  CHECK_THROWS_WITH_AS(sparse_attention(f32({1, 2, 8}), 0, dense, 2),
                       "sparse_attention: d_qk must be at least 1, got 0", Error);
  CHECK_THROWS_WITH_AS(sparse_attention(f32({1, 2, 4}), f32({1, 2, 4}), f32({1, 2, 4}), {{{Local{0}}}}, 1),
                       "local: window must be at least 1, got 0", UsageError);
}

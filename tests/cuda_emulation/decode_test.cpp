// Sampling on a GPU, emulated or real: the decode cache against attention of the whole sequence, and whole samples
// against the CPU's.

#include <doctest/doctest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "models/sampler.h"
#include "ops/matmul/matmul.h"
#include "ops/sparse_attention/decode.h"
#if !LACUNA_ON_GPU
#include "tests/cuda_emulation/runtime_emulated.h"
#endif
#include "tests/cuda_emulation/sanitizers.h"
#include "tests/models/tiny_models.h"
#include "tests/ops/sparse_attention/dense_masked.h"
#include "tests/ops/sparse_attention/random_patterns.h"

using namespace lacuna;
using namespace lacuna::test;

namespace {

using emulation::under_tsan;  // there the emulator takes some hundred times as long

const int kRandomCases = setenv("RC_PARAMS", "max_success=12", /*overwrite=*/0);

/// Row i of every sequence of x [batch, n, width], on the GPU.
Tensor row_of(const std::vector<float>& x, const Case& c, int64_t width, int64_t i) {
  std::vector<float> row;
  for (int64_t b = 0; b < c.batch; ++b)
    row.insert(row.end(), x.begin() + (b * c.n + i) * width, x.begin() + (b * c.n + i + 1) * width);
  return to_device(from_vector(row, {c.batch, width}), kCuda);
}

/// Attends from the positions `first`, ... alone.
bool decodes(const Case& c, int64_t first = 0) {
  const Inputs<float> in(c);
  const Exact exact = dense_masked<float>(c);
  const int64_t row_qk = c.n_heads * c.d_qk, row_v = c.n_heads * c.d_v;
  DecodeCache cache(c.pattern, c.n_heads, c.n, c.batch, c.d_qk, c.d_v, DType::f32, kCuda);
  std::vector<float> ours(exact.value.o.begin(), exact.value.o.end());
  for (int64_t i = 0; i < c.n; ++i) {
    cache.append(row_of(in.k, c, row_qk, i), row_of(in.v, c, row_v, i));
    if (i < first) continue;
    const std::vector<float> row = to_vector<float>(cache.attend(row_of(in.q, c, row_qk, i)));
    for (int64_t b = 0; b < c.batch; ++b)
      std::copy_n(row.begin() + b * row_v, row_v, ours.begin() + (b * c.n + i) * row_v);
  }
  return near(ours, exact.value.o, exact.size.o, 8 * 1.2e-7);
}

}  // namespace

TEST_CASE("DecodeCache on a GPU: every row is that of dense attention under the mask") {
  for (const char* text : {"dense", "local(window=9) + column(stride=7)", "column(stride=6) | local(window=20)",
                           "fixed_block(stride=8) + fixed_summary(stride=8, c=2, sub_blocks=2)",
                           "dilated(window=4, dilation=3) + global(n=3)", "longnet(w=8:32, r=1:4)"}) {
    CAPTURE(text);
    if (under_tsan())
      CHECK(decodes({1, 12, 2, 6, 5, layer(text)}, 10));
    else
      CHECK(decodes({2, 20, 2, 6, 5, layer(text)}));
  }
  if (!under_tsan()) CHECK(decodes({1, 270, 1, 3, 40, layer("dense")}, 265));  // more keys than a block takes at once
}

TEST_CASE("DecodeCache on a GPU: any pattern" * doctest::skip(under_tsan())) {
  CHECK(rc::check([] {
    const int64_t n_heads = *rc::gen::inRange(1, 4);
    RC_ASSERT(decodes({*rc::gen::inRange(1, 3), *rc::gen::inRange(1, 25), n_heads, *rc::gen::inRange(1, 10),
                       *rc::gen::inRange(1, 10), random_layer(20, n_heads)}));
  }));
}

TEST_CASE("DecodeCache on a GPU: only f32") {
  CHECK_THROWS_WITH_AS(DecodeCache(layer("dense"), 1, 4, 1, 4, 4, DType::f64, kCuda),
                       "DecodeCache: dtype must be f32 on a GPU, got f64", Error);
}

TEST_CASE("linear_rows on a GPU: equals the CPU's; a row has the same bits however many rows there are") {
  const Parameters weights({{"w", {37, 70}, 0.1}, {"b", {37}, 0.1}, {"x", {67, 70}, 1.0}}, 2);
  const auto there = [&](const char* name) { return Variable(to_device(weights[name].value(), kCuda)); };
  const Tensor x = there("x").value();
  const std::vector<float> ours = to_vector<float>(linear_rows(x, there("w"), there("b"))),
                           theirs = to_vector<float>(linear_rows(weights["x"].value(), weights["w"], weights["b"]));
  for (size_t i = 0; i < ours.size(); ++i) CHECK(std::abs(ours[i] - theirs[i]) < 1e-5f);
  const std::vector<int64_t> counts =
      under_tsan() ? std::vector<int64_t>{2, 64} : std::vector<int64_t>{1, 2, 7, 8, 9, 63, 64, 66};
  for (const int64_t rows : counts) {
    const std::vector<float> some = to_vector<float>(linear_rows(x.slice(0, rows), there("w"), there("b")));
    CHECK(std::equal(some.begin(), some.end(), ours.begin()));
  }
}

TEST_CASE("sample on a GPU: the CPU's tokens" * doctest::skip(under_tsan())) {
  for (const auto& [attention, temperature] : {std::pair("local(window=4) + column(stride=4)", 1.0),
                                               std::pair("fixed_block(stride=5), fixed_summary(stride=5, c=1)", 0.0)}) {
    ModelConfig config = tiny_config(attention);
    config.n_layers = 2;
    const SparseTransformer here(config, /*seed=*/1), there(config, /*seed=*/1, DType::f32, kCuda);
    perturb(here);
    copy(here.parameters().values(), there.parameters().values());
    const Tensor prompt = random_tokens(1, 3, 11).reshape({3});
    const SampleOptions options{.count = 2, .length = 14, .temperature = temperature, .seed = 5};
    std::vector<int64_t> progress;
    const Tensor ours = sample(there, options, prompt, [&](int64_t done) { progress.push_back(done); });
    CHECK(to_vector<uint8_t>(ours) == to_vector<uint8_t>(sample(here, options, prompt)));
    CHECK(progress == std::vector<int64_t>{14});
  }
}

#if !LACUNA_ON_GPU
TEST_CASE("sample on a GPU: the same tokens, and a line, when steps cannot be recorded" * doctest::skip(under_tsan())) {
  const SparseTransformer model(tiny_config("local(window=4) + column(stride=4)"), 1, DType::f32, kCuda);
  const SampleOptions options{.count = 2, .seed = 5};  // all positions, so that none is counted twice
  std::vector<std::string> said;
  const auto say = [&](const std::string& line) { said.push_back(line); };
  const Tensor recorded = sample(model, options, {}, {}, say);
  CHECK(said.empty());
  const emulation::NoGraphs none("out of memory");
  CHECK(to_vector<uint8_t>(sample(model, options, {}, {}, say)) == to_vector<uint8_t>(recorded));
  CHECK(said ==
        std::vector<std::string>{"note: steps run kernel by kernel, not as a CUDA graph: graph: out of memory"});
}
#endif

TEST_CASE("sample on a GPU: logits that are not finite are refused" * doctest::skip(under_tsan())) {
  const SparseTransformer model(tiny_config("dense"), 1, DType::f32, kCuda);
  fill(model.parameters()["logits.weight"].value(), std::nan(""));
  CHECK_THROWS_WITH_AS(sample(model, {.count = 1, .length = 2}), "sample: logits are not finite", Error);
}

#include "models/sampler.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "tests/models/tiny_models.h"

namespace lacuna {
namespace {

Tensor row_of(const Tensor& tokens, int64_t t) {  // tokens [batch, n] -> [batch] at position t
  const Tensor row = empty({tokens.dim(0)}, DType::u8);
  for (int64_t b = 0; b < tokens.dim(0); ++b) row.data<uint8_t>()[b] = tokens.data<uint8_t>()[b * tokens.dim(1) + t];
  return row;
}

TEST_CASE("decoder: its logits are those of the training forward, for every pattern") {
  for (const DType dtype : {DType::f64, DType::f32})
    for (const std::string& attention : kPatterns) {
      CAPTURE(attention);
      CAPTURE(name_of(dtype));
      const SparseTransformer model(tiny_config(attention), /*seed=*/1, dtype);
      perturb(model);
      const Tensor tokens = random_tokens(/*batch=*/3, 23, 11);
      const std::vector<double> expected = elements(model(tokens, {}).value());
      double largest = 0.0;
      for (const double x : expected) largest = std::max(largest, std::abs(x));

      Decoder decoder(model, /*batch=*/3);
      double difference = 0.0;
      for (size_t t = 0; t < 23; ++t) {
        const Tensor previous = t ? row_of(tokens, static_cast<int64_t>(t) - 1) : Tensor();
        const std::vector<double> logits = elements(decoder.step(previous));
        REQUIRE(logits.size() == 3 * 11);
        for (size_t b = 0; b < 3; ++b)
          for (size_t c = 0; c < 11; ++c)
            difference = std::max(difference, std::abs(logits[b * 11 + c] - expected[(b * 23 + t) * 11 + c]));
      }
      CHECK(difference < largest * (dtype == DType::f64 ? 1e-12 : 1e-5));
      CHECK(decoder.position() == 23);
      CHECK_THROWS_WITH_AS(decoder.step(row_of(tokens, 22)), "Decoder: made for 23 positions, all done", Error);
    }
}

TEST_CASE("decoder: wrong arguments are refused") {
  const SparseTransformer model(tiny_config("dense"), 1);
  CHECK_THROWS_WITH_AS(Decoder(model, 0), "Decoder: batch must be at least 1, got 0", Error);
  CHECK_THROWS_WITH_AS(Decoder(model, 1, 24), "Decoder: length must be in 0..23, got 24", Error);
  Decoder decoder(model, 2, 5);
  decoder.step({});
  CHECK_THROWS_WITH_AS(decoder.step(zeros({3}, DType::u8)), "Decoder: previous tokens must be u8 [2]", Error);
  CHECK_THROWS_WITH_AS(decoder.step(full({2}, DType::u8, 11)),
                       "embedding_at: previous must be below n_vocab 11, got 11 at [0]", Error);
}

TEST_CASE("sample: a function of weights, prompt, seed and place, and not of count") {
  const SparseTransformer model(tiny_config("local(window=4) + column(stride=4)"), 1);
  perturb(model);
  const auto tokens = [&](SampleOptions options) { return to_vector<uint8_t>(sample(model, options)); };
  const std::vector<uint8_t> nine = tokens({.count = 9, .seed = 3});
  CHECK(nine.size() == 9 * 23);
  CHECK(nine == tokens({.count = 9, .seed = 3}));
  CHECK(nine != tokens({.count = 9, .seed = 4}));
  for (const int64_t count : {1, 2, 5, 8}) {
    const std::vector<uint8_t> fewer = tokens({.count = count, .seed = 3});
    CHECK(std::equal(fewer.begin(), fewer.end(), nine.begin()));
  }
  const std::vector<uint8_t> shorter = tokens({.count = 2, .length = 7, .seed = 3});
  CHECK(std::equal(shorter.begin(), shorter.begin() + 7, nine.begin()));
  CHECK(std::equal(shorter.begin() + 7, shorter.end(), nine.begin() + 23));
}

TEST_CASE("sample: temperature 0 takes the likeliest token of the forward pass") {
  const SparseTransformer model(tiny_config("fixed_block(stride=6) | fixed_summary(stride=6, c=2)"), 1, DType::f64);
  perturb(model);
  const Tensor tokens = sample(model, {.count = 1, .temperature = 0.0});
  const std::vector<double> logits = elements(model(tokens, {}).value());
  for (size_t t = 0; t < 23; ++t) {
    const auto row = logits.begin() + static_cast<int64_t>(t) * 11;
    CHECK(std::max_element(row, row + 11) - row == tokens.data<uint8_t>()[t]);
  }
}

TEST_CASE("sample: logits that are not finite are an error at every temperature") {
  for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL})
    for (const double temperature : {0.0, 1.0}) {
      CAPTURE(bad);
      CAPTURE(temperature);
      const SparseTransformer model(tiny_config("dense"), 1);
      perturb(model);
      fill(model.parameters()["logits.weight"].value().slice(5, 6), bad);
      CHECK_THROWS_WITH_AS(sample(model, {.temperature = temperature}), "sample: logits are not finite", Error);
    }
}

TEST_CASE("sample: frequencies follow the softmax of logits / temperature") {
  ModelConfig config = tiny_config("dense");
  const SparseTransformer model(config, 1);
  perturb(model);
  constexpr int64_t kCount = 4000;
  for (const double temperature : {1.0, 0.5}) {
    const Tensor tokens = sample(model, {.count = kCount, .length = 1, .temperature = temperature, .seed = 9});
    std::vector<double> p = elements(model(tokens.slice(0, 1), {}).value());  // position 0 reads no token
    double sum = 0.0;
    for (double& x : p) sum += x = std::exp(x / temperature);
    for (int64_t c = 0; c < 11; ++c) {
      const double expected = p[static_cast<size_t>(c)] / sum;
      const auto got = std::count(tokens.data<uint8_t>(), tokens.data<uint8_t>() + kCount, static_cast<uint8_t>(c));
      const double deviation = std::sqrt(expected * (1.0 - expected) * kCount);
      CHECK(std::abs(static_cast<double>(got) - expected * kCount) < 4.0 * deviation + 1.0);
    }
  }
}

TEST_CASE("sample: a prompt begins every sequence and conditions the rest; progress counts positions") {
  const SparseTransformer model(tiny_config("dense"), 1);
  perturb(model);
  const Tensor prompt = from_vector<uint8_t>({7, 3, 9, 1}, {4});
  std::vector<int64_t> positions;
  const SampleOptions options{.count = 2, .length = 10, .seed = 1};
  const std::vector<uint8_t> tokens =
      to_vector<uint8_t>(sample(model, options, prompt, [&](int64_t done) { positions.push_back(done); }));
  CHECK(positions == std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10});
  for (const int64_t begin : {0, 10}) {
    const std::vector<uint8_t> start(tokens.begin() + begin, tokens.begin() + begin + 4);
    CHECK(start == std::vector<uint8_t>{7, 3, 9, 1});
  }
  const std::vector<uint8_t> other =
      to_vector<uint8_t>(sample(model, options, from_vector<uint8_t>({2, 2, 2, 2}, {4})));
  CHECK(std::vector<uint8_t>(tokens.begin() + 4, tokens.begin() + 10) !=
        std::vector<uint8_t>(other.begin() + 4, other.begin() + 10));
}

TEST_CASE("sample: options out of range are refused") {
  const SparseTransformer model(tiny_config("dense"), 1);
  CHECK_THROWS_WITH_AS(sample(model, {.count = 0}), "sample: count must be at least 1, got 0", UsageError);
  CHECK_THROWS_WITH_AS(sample(model, {.length = 24}), "sample: length must be in 0..23, got 24", UsageError);
  CHECK_THROWS_WITH_AS(sample(model, {.temperature = -1.0}), "sample: temperature must be a number >= 0, got -1",
                       UsageError);
  CHECK_THROWS_WITH_AS(sample(model, {.length = 3}, zeros({4}, DType::u8)),
                       "sample: the prompt must fit the length of 3 tokens, got 4", UsageError);
}

}  // namespace
}  // namespace lacuna

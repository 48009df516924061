#include "experiments/dense_rival.h"

#include <doctest/doctest.h>

#include <map>

#include "core/error.h"

namespace lacuna {
namespace {

ModelConfig model(const char* attention, int64_t n_layers = 4, int64_t n_ctx = 1000) {
  ModelConfig config;
  config.n_ctx = n_ctx;
  config.d_model = 16;
  config.n_layers = n_layers;
  config.n_heads = 2;
  config.attention = parse_attention(attention);
  return config;
}

/// A machine on which dense attention takes 1e-6 n^2 seconds and other layers what `seconds` says; keeps the lengths
/// at which dense attention was timed.
struct Machine {
  std::map<std::string, double> seconds;
  std::vector<int64_t> dense_lengths;

  TimeAttention time() {
    return [this](const LayerPattern& pattern, int64_t n) {
      const std::string text = to_string(AttentionPattern{{pattern}});
      if (text == "dense") {
        dense_lengths.push_back(n);
        return 1e-6 * static_cast<double>(n * n);
      }
      CHECK(n == 1000);
      return seconds.at(text);
    };
  }
};

TEST_CASE("slower_than_dense: dense models are not timed") {
  Machine machine;
  CHECK_FALSE(slower_than_dense(model("dense"), machine.time()));
  CHECK_FALSE(slower_than_dense(model("dense, dense | dense"), Machine{{{"dense | dense", 0.5}}, {}}.time()));
  CHECK(machine.dense_lengths.empty());
}

TEST_CASE("slower_than_dense: dense attention is timed no further than where it takes as long") {
  Machine machine{{{"local(window=4)", 0.06}}, {}};
  CHECK_FALSE(slower_than_dense(model("local(window=4)"), machine.time()));
  CHECK(machine.dense_lengths == std::vector<int64_t>{128, 256});  // 0.016 s and 0.066 s
}

TEST_CASE("slower_than_dense: a mean layer slower than dense at n_ctx, though not at twice that, is told of") {
  Machine machine{{{"local(window=4)", 3.0}, {"column(stride=4)", 0.2}}, {}};
  const auto slower = slower_than_dense(model("local(window=4), column(stride=4), dense", 5), machine.time());
  REQUIRE(slower);
  CHECK(slower->pattern_s == doctest::Approx((2 * 3.0 + 2 * 0.2 + 1.0) / 5));
  CHECK(slower->dense_s == doctest::Approx(1.0));
  CHECK(machine.dense_lengths == std::vector<int64_t>{1000, 128, 256, 512, 1000});
}

TEST_CASE("slower_than_dense: eight times dense attention in one softmax, with times measured") {
  const ModelConfig config = model("longnet(w=512:512:512:512:512:512:512:512, r=1:1:1:1:1:1:1:1)", 1, 512);
  const auto slower = slower_than_dense(config, time_attention_of(config, DType::f32));
  REQUIRE(slower);
  CHECK(slower->pattern_s > slower->dense_s);
}

}  // namespace
}  // namespace lacuna

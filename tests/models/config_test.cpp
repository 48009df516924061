#include "models/config.h"

#include <doctest/doctest.h>

#include <functional>

#include "core/error.h"
#include "tests/models/tiny_models.h"

namespace lacuna {
namespace {

TEST_CASE("model config: as strings and back for every pattern") {
  for (const std::string& attention : kPatterns) {
    ModelConfig config = tiny_config(attention);
    config.dropout = 0.1f;
    config.init = InitConvention::paper;
    config.embedding_init = EmbeddingInit::waves;
    config.embedding_std = 0.3f;
    config.recompute = false;
    const ModelConfig back = model_config_from_strings(to_strings(config));
    CHECK(to_strings(back) == to_strings(config));
    CHECK(back.n_vocab == 11);
    CHECK(back.n_ctx == 23);
    CHECK(back.d_model == 16);
    CHECK(back.n_layers == 3);
    CHECK(back.n_heads == 4);
    CHECK(back.d_qk == 8);
    CHECK(back.d_ff == 24);
    CHECK(back.dropout == 0.1f);
    CHECK(back.position_extents == std::vector<int64_t>{5, 5});
    CHECK(back.attention == config.attention);
    CHECK(back.init == InitConvention::paper);
    CHECK(back.embedding_init == EmbeddingInit::waves);
    CHECK(back.embedding_std == 0.3f);
    CHECK_FALSE(back.recompute);
  }
}

TEST_CASE("model config: files that know no embedding_init have the convention's tables") {
  auto strings = to_strings(tiny_config("dense"));
  strings.erase("embedding_init");
  strings.erase("embedding_std");
  const ModelConfig config = model_config_from_strings(strings);
  CHECK(config.embedding_init == EmbeddingInit::normal);
  CHECK(config.embedding_std == 0.0f);
}

TEST_CASE("model config: widths of zero are written resolved") {
  ModelConfig config = tiny_config("dense");
  config.d_qk = config.d_ff = 0;
  CHECK(to_strings(config).at("d_qk") == "16");
  CHECK(to_strings(config).at("d_ff") == "64");
}

TEST_CASE("model config: a missing, unknown or malformed entry is named") {
  const auto message = [](const std::function<void(std::map<std::string, std::string>&)>& change) {
    auto strings = to_strings(tiny_config("dense"));
    change(strings);
    try {
      model_config_from_strings(strings);
    } catch (const UsageError& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  CHECK(message([](auto&) {}) == "accepted");
  CHECK(message([](auto& s) { s.erase("n_heads"); }) == "model config: entry 'n_heads' is missing");
  CHECK(message([](auto& s) {
          s["n_head"] = std::string("2");
        }).starts_with("model config: unknown entry 'n_head'; the entries are n_vocab, "));
  for (const char* bad : {"", " 3", "3 ", "+3", "3.0", "0x3", "three", "99999999999999999999"})
    CHECK(message([&](auto& s) { s["n_layers"] = std::string(bad); }) ==
          concat("model config: n_layers must be an integer, got '", bad, "'"));
  for (const char* bad : {"", "half", "0.1f", "nan", "inf", "0,1"})
    CHECK(message([&](auto& s) { s["dropout"] = std::string(bad); }) ==
          concat("model config: dropout must be a number, got '", bad, "'"));
  CHECK(message([](auto& s) { s["position_extents"] = std::string("5,,5"); }) ==
        "model config: position_extents must be an integer, got ''");
  CHECK(message([](auto& s) { s["position_extents"] = std::string("5,5,"); }) ==
        "model config: position_extents must be an integer, got ''");
  CHECK(message([](auto& s) { s["recompute"] = std::string("yes"); }) ==
        "model config: recompute must be 'true' or 'false', got 'yes'");
  CHECK(message([](auto& s) { s["init"] = std::string("papers"); }) ==
        "model config: init must be 'released_code' or 'paper', got 'papers'");
  CHECK(message([](auto& s) { s["attention"] = std::string("dens"); }).find("dens") != std::string::npos);
}

TEST_CASE("model config: a rule that is broken is named with its field and value") {
  const auto message = [](const std::function<void(ModelConfig&)>& change) {
    ModelConfig config = tiny_config("local(window=4) | column(stride=4)");
    change(config);
    try {
      validate(config);
    } catch (const UsageError& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  CHECK(message([](auto&) {}) == "accepted");
  CHECK(message([](auto& c) { c.n_vocab = 257; }) == "model config: n_vocab must be in 1..256, got 257");
  CHECK(message([](auto& c) { c.n_vocab = 0; }) == "model config: n_vocab must be in 1..256, got 0");
  CHECK(message([](auto& c) { c.n_ctx = 0; }) == "model config: n_ctx must be in 1..2147483648, got 0");
  CHECK(message([](auto& c) { c.d_model = -16; }) == "model config: d_model must be in 1..1048576, got -16");
  CHECK(message([](auto& c) { c.n_layers = 0; }) == "model config: n_layers must be in 1..4095, got 0");
  CHECK(message([](auto& c) { c.n_layers = 4096; }) == "model config: n_layers must be in 1..4095, got 4096");
  CHECK(message([](auto& c) { c.n_heads = 0; }) == "model config: n_heads must be in 1..16, got 0");
  CHECK(message([](auto& c) { c.n_heads = 3; }) == "model config: d_model must be a multiple of n_heads = 3, got 16");
  CHECK(message([](auto& c) { c.d_qk = 10; }) == "model config: d_qk must be a multiple of n_heads = 4, got 10");
  CHECK(message([](auto& c) { c.d_ff = -1; }) == "model config: d_ff must be in 0..1048576, got -1");
  CHECK(message([](auto& c) { c.dropout = 1.0f; }) == "model config: dropout must be in [0, 1), got 1");
  CHECK(message([](auto& c) { c.dropout = -0.5f; }) == "model config: dropout must be in [0, 1), got -0.5");
  CHECK(message([](auto& c) { c.position_extents = {}; }) ==
        "model config: position_extents must name 1..8 tables, got 0");
  CHECK(message([](auto& c) {
          c.position_extents = {5, 0};
        }) == "model config: each of position_extents must be in 1..2147483648, got 0");
  CHECK(message([](auto& c) {
          c.position_extents = {11, 2};
        }) == "model config: position_extents must hold at least n_ctx = 23 positions, got 11,2, which hold 22");
  CHECK(message([](auto& c) { c.position_extents.assign(8, int64_t{1} << 31); }) == "accepted");
  CHECK(message([](auto& c) { c.attention.layers.clear(); }) ==
        "model config: attention must name at least one pattern, got none");
  CHECK(message([](auto& c) { c.n_heads = 1; }).find("n_heads") != std::string::npos);  // split over two heads
}

}  // namespace
}  // namespace lacuna

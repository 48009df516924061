#include "experiments/config.h"

#include "experiments/presets.h"
#include "tests/support/expect_error.h"

namespace lacuna {
namespace {

ExperimentConfig laptop() { return find_preset("enwik8", "laptop").config; }

TEST_CASE("config: TOML gives back what was written, for every preset") {
  for (const Preset& preset : all_presets()) {
    CAPTURE(preset.config.preset);
    ExperimentConfig config;
    config.program = preset.config.program;
    config.preset = preset.config.preset;
    merge_toml(config, to_toml(preset.config), "config.toml");
    CHECK(to_toml(config) == to_toml(preset.config));
    CHECK(preset_of_toml(to_toml(preset.config), "config.toml") == preset.config.preset);
    ExperimentConfig from_map;
    merge_map(from_map, to_map(preset.config), "train_state.json");
    CHECK(to_map(from_map) == to_map(preset.config));
  }
}

TEST_CASE("config: strings survive TOML whatever is in them") {
  ExperimentConfig config = laptop(), back = laptop();
  config.data_path = "a \"quoted\" \\ path\twith\nall of it \x7f é";
  merge_toml(back, to_toml(config), "config.toml");
  CHECK(back.data_path == config.data_path);
}

TEST_CASE("config: --set takes keys with and without their section") {
  ExperimentConfig config = laptop();
  set_from_text(config, "train.lr", "1e-4");
  set_from_text(config, "d_model", "64");
  set_from_text(config, "position_extents", "[4, 16]");
  set_from_text(config, "recompute", "true");
  set_from_text(config, "attention", "dense");
  set_from_text(config, "init", "paper");
  set_from_text(config, "dtype", "f64");
  CHECK(config.train.lr == 1e-4);
  CHECK(config.model.d_model == 64);
  CHECK(config.model.position_extents == std::vector<int64_t>{4, 16});
  CHECK(config.model.recompute);
  CHECK(config.model.attention == parse_attention("dense"));
  CHECK(config.model.init == InitConvention::paper);
  CHECK(config.train.dtype == DType::f64);
}

TEST_CASE("config: a bad key or value is an error that names key and rule") {
  const struct {
    const char *key, *value, *message;
  } kBad[] = {
      {"d_modle", "64", "unknown key d_modle (did you mean d_model?)"},
      {"train.n_ctx", "64", "unknown key train.n_ctx"},
      {"model.d_modl", "64", "unknown key model.d_modl (did you mean model.d_model?)"},
      {"steps", "-1", "train.steps must be a whole number from 1 to"},
      {"steps", "1e999", "train.steps must be a whole number"},
      {"steps", "99999999999999999999", "train.steps must be a whole number"},
      {"steps", "", "train.steps must be a whole number"},
      {"lr", "nan", "train.lr must be a number"},
      {"lr", "-1", "train.lr must be a number from 0.0 to 10.0, got -1.0"},
      {"lr", "1e999", "train.lr must be a number"},
      {"dropout", "1", "model.dropout must be a number from 0.0 to 0.99"},
      {"recompute", "maybe", "model.recompute must be true or false"},
      {"position_extents", "", "model.position_extents must list 1 to 8 extents"},
      {"position_extents", "32,,3", "model.position_extents must be a whole number"},
      {"position_extents", "32,0", "model.position_extents must be a whole number"},
      {"attention", "dense(", "model.attention: "},
      {"attention", "column(stride=0)", "model.attention: "},
      {"init", "papr", "(did you mean paper?)"},
      {"dtype", "i64", "train.dtype must be f32, f64, bf16 or f16"},
      {"dtype", "float", "train.dtype must be"},
  };
  for (const auto& bad : kBad) {
    CAPTURE(bad.key);
    CAPTURE(bad.value);
    ExperimentConfig config = laptop();
    expect_error<UsageError>(bad.message, [&] {
      set_from_text(config, bad.key, bad.value);
      validate(config);
    });
  }
}

TEST_CASE("config: a bad file is an error that names file and line") {
  const struct {
    const char *text, *message;
  } kBad[] = {
      {"[train]\nstpes = 5", "x.toml, line 2: unknown key train.stpes (did you mean train.steps?)"},
      {"[trian]\nsteps = 5", "unknown section [trian] (did you mean train?)"},
      {"steps = 5", "unknown key steps"},
      {"[train]\nsteps = \"5\"", "x.toml, line 2: train.steps must be a whole number"},
      {"[train]\nsteps = 1.5", "train.steps must be a whole number"},
      {"[train]\nlr = nan", "train.lr must be a number"},
      {"[train]\nlr = inf", "train.lr must be a number"},
      {"[train]\nsteps = 5\nsteps = 6", "x.toml, line 3: "},
      {"[train]\nsteps = 5 6", "x.toml, line 2: "},
      {"[train]\nsteps = \xff", "x.toml, line 2: "},
      {"[model]\nattention = 3", "model.attention must be a string"},
      {"[model]\nposition_extents = [1, \"a\"]", "model.position_extents must be a list of whole numbers"},
      {"program = \"cifar10\"", "x.toml, line 1: this configuration is of program cifar10, not enwik8"},
      {"train = 3", "train must be a section"},
  };
  for (const auto& bad : kBad) {
    CAPTURE(bad.text);
    ExperimentConfig config = laptop();
    expect_error<UsageError>(bad.message, [&] { merge_toml(config, bad.text, "x.toml"); });
  }
}

TEST_CASE("config: settings that do not go together") {
  const auto invalid = [](const char* key, const char* value) {
    return [=] {
      ExperimentConfig config = laptop();
      set_from_text(config, key, value);
      validate(config);
    };
  };
  expect_error<UsageError>("n_heads", invalid("n_heads", "5"));
  expect_error<UsageError>("position_extents", invalid("n_ctx", "100000"));
  expect_error<UsageError>("train.micro_batch must be at most train.batch", invalid("micro_batch", "1000"));
}

}  // namespace
}  // namespace lacuna

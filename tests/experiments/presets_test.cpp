#include "experiments/presets.h"

#include <set>

#include "autograd/parameters.h"
#include "experiments/experiment.h"
#include "models/sparse_transformer.h"
#include "tests/support/expect_error.h"

namespace lacuna {
namespace {

TEST_CASE("presets: every one is valid and has a name of its own") {
  std::set<std::pair<std::string, std::string>> names;
  for (const Preset& preset : all_presets()) {
    CAPTURE(preset.config.preset);
    CHECK_NOTHROW(validate(preset.config));
    CHECK(names.emplace(preset.config.program, preset.config.preset).second);
  }
}

TEST_CASE("presets: the rows of the paper have the paper's parameters") {
  const auto parameters = [](const char* program, const char* preset) {
    return count_parameters(parameter_specs(find_preset(program, preset).config.model));
  };
  for (const char* pattern : {"cifar10-59m-strided", "cifar10-59m-fixed", "cifar10-59m-dense"})
    CHECK(parameters("cifar10", pattern) == 59'196'928);
  for (const char* pattern : {"enwik8-95m-strided", "enwik8-95m-fixed", "enwik8-95m-dense"})
    CHECK(parameters("enwik8", pattern) == 94'949'888);
  CHECK(parameters("imagenet64", "imagenet64-152m") == 151'645'184);
  CHECK(parameters("imagenet64", "imagenet64-300m") == 302'959'616);
  CHECK(parameters("music", "music-65k") == 151'840'256);
}

TEST_CASE("presets: a plan tells parameters, arithmetic and memory without making a model") {
  const std::string plan = describe_plan(find_preset("cifar10", "cifar10-59m-strided").config, 1, 1);
  CAPTURE(plan);
  CHECK(contains(plan, "59,196,928"));
  CHECK(contains(plan, "optimizer"));
  CHECK(contains(plan, "activations"));
  CHECK(contains(plan, "time of a step       at least "));
  CHECK(contains(plan, "memory of the sampling cache in f32, per sequence of 3,072"));
  // 4 bytes * (128 + 256) for each of 3,072 positions in 128 layers; 96 of them in 3 layers of 4
  CHECK(contains(plan, "of the 576.0 MiB that keep every position"));
  CHECK(contains(plan, "27.3 %"));
}

TEST_CASE("presets: unknown names and those of other programs") {
  expect_error<UsageError>("unknown preset lptop (did you mean laptop?)", [] { find_preset("enwik8", "lptop"); });
  expect_error<UsageError>("belongs to the program cifar10, not enwik8",
                           [] { find_preset("enwik8", "cifar10-59m-strided"); });
  CHECK(find_preset("enwik8", "imagenet64-152m", /*any_program=*/true).config.model.n_ctx == 12288);
}

}  // namespace
}  // namespace lacuna

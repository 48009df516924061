#include "experiments/options.h"

#include "tests/support/expect_error.h"
#include "tests/support/temporary_folder.h"

namespace lacuna {
namespace {

Options parse(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "enwik8");
  return parse_options({"enwik8", "bytes", "a file", "text", "laptop"}, arguments);
}

ExperimentConfig resolve(const std::vector<std::string>& arguments) {
  return resolve_config(parse(arguments), "enwik8", "laptop");
}

TEST_CASE("options: what each command takes") {
  const Options train =
      parse({"train",    "--data", "d",      "--out", "o",         "--steps",   "7", "--batch-tokens=4096",
             "--resume", "none",   "--zero", "0",     "--dry-run", "--threads", "2", "--device",
             "cpu",      "--set",  "lr=1",   "--set", "keep=2"});
  CHECK(train.command == Command::train);
  CHECK(train.data == "d");
  CHECK(train.out == "o");
  CHECK(train.steps == 7);
  CHECK(train.batch_tokens == 4096);
  CHECK(train.resume == "none");
  CHECK(train.dry_run);
  CHECK_FALSE(train.print_config);
  CHECK(train.threads == 2);
  CHECK(train.set == std::vector<std::string>{"lr=1", "keep=2"});

  const Options eval =
      parse({"eval", "--checkpoint", "c", "--split", "valid", "--min-context", "100", "--weights", "last"});
  CHECK(eval.command == Command::eval);
  CHECK(eval.checkpoint == "c");
  CHECK(eval.split == "valid");
  CHECK(eval.min_context == 100);
  CHECK(eval.weights == Weights::last);

  const Options sample = parse({"sample", "--count", "3", "--temperature", "0.5", "--prompt", "--x", "--seed", "9"});
  CHECK(sample.command == Command::sample);
  CHECK(sample.count == 3);
  CHECK(sample.temperature == 0.5);
  CHECK(sample.prompt == "--x");
  CHECK(sample.seed == 9);

  const Options plan = parse({"plan", "--ranks", "8", "--device-memory", "80G", "--batch", "2"});
  CHECK(plan.command == Command::plan);
  CHECK(plan.ranks == 8);
  CHECK(plan.device_memory == int64_t{80} << 30);
  CHECK(plan.batch == 2);

  const Options parity = parse({"parity", "--tokens", "t", "--dtype", "f64", "--init-only"});
  CHECK(parity.command == Command::parity);
  CHECK(parity.tokens == "t");
  CHECK(parity.dtype == DType::f64);
  CHECK(parity.init_only);
}

TEST_CASE("options: help is text, not an error") {
  for (const char* command : {"train", "eval", "sample", "plan", "parity"}) {
    const Options help = parse({command, "--help"});
    CHECK(help.command == Command::help);
    CHECK(contains(help.help, "--preset"));
    CHECK(contains(help.help, "Example:"));
  }
  CHECK(contains(parse({"--help"}).help, "Exit codes"));
  CHECK(contains(parse({"--version"}).help, "lacuna"));

  const ProgramHelp needs_data{"cifar10", "images", "a folder", "a file", "laptop", /*has_default_data=*/false};
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{"cifar10", "--help"},
                                                    std::vector<std::string>{"cifar10", "train", "--help"}}) {
    const std::string help = parse_options(needs_data, arguments).help;
    CHECK(contains(help, "cifar10 train --data FOLDER"));  // an example must work as it stands
    CHECK_FALSE(contains(help, "cifar10 train --steps"));
    CHECK_FALSE(contains(help, "cifar10 train --out"));
  }
  CHECK_FALSE(contains(parse({"--help"}).help, "--data FOLDER"));
}

TEST_CASE("options: misuse is an error that says what to do") {
  const struct {
    std::vector<std::string> arguments;
    const char* message;
  } kBad[] = {
      {{}, "a command is missing"},
      {{"trian"}, "unknown command trian (did you mean train?)"},
      {{"train", "--stpes", "5"}, "unknown flag --stpes (did you mean --steps?)"},
      {{"train", "--stpes=5"}, "unknown flag --stpes=5 (did you mean --steps?)"},
      {{"train", "stray"}, "unexpected argument stray"},
      {{"train", "--split", "test"}, "unknown flag --split"},
      {{"train", "--steps"}, "--steps needs a value"},
      {{"train", "--set", "lr=1", "--set"}, "--set needs a value"},
      {{"train", "--steps", "0"}, "--steps must be a whole number from 1"},
      {{"train", "--steps", "-5"}, "--steps must be a whole number from 1"},
      {{"train", "--steps", "5", "--steps", "6"}, "--steps is given 2 times, must be once"},
      {{"train", "--device", "gpu"}, "--device must be auto, cpu or cuda"},
      {{"train", "--dtype", "i32"}, "--dtype must be f32, f64, bf16 or f16, got 'i32'"},
      {{"train", "--dtype", "f23"}, "f23"},
      {{"train", "--zero", "1"}, "--zero 1: not in this build"},
      {{"train", "--zero", "7"}, "--zero must be"},
      {{"train", "--seed", "1e999"}, "--seed must be a whole number"},
      {{"train", "--threads", "0"}, "--threads must be a whole number from 1"},
      {{"train", "--resume", ""}, "--resume must not be empty"},
      {{"train", "--data", ""}, "--data must not be empty"},
      {{"train", "--steps="}, "--steps"},
      {{"eval", "--split", "tset"}, "--split must be valid or test, got \"tset\" (did you mean test?)"},
      {{"sample", "--temperature", "nan"}, "--temperature must be a number"},
      {{"sample", "--weights", "best"}, "--weights must be ema or last"},
      {{"plan", "--device-memory", "lots"}, "--device-memory must be a number of bytes"},
  };
  for (const auto& bad : kBad) {
    CAPTURE(bad.message);
    expect_error<UsageError>(bad.message, [&] { parse(bad.arguments); });
  }
}

TEST_CASE("options: preset < file < --set < flags") {
  const TemporaryFolder folder;
  const std::string file =
      folder.write("c.toml", "preset = \"laptop-dense\"\n[train]\nlr = 0.25\nsteps = 11\nbatch = 3\nseed = 5\n")
          .string();
  const ExperimentConfig config =
      resolve({"train", "--config", file, "--set", "steps=12", "--set", "batch=4", "--steps", "13", "--seed", "6"});
  CHECK(config.preset == "laptop-dense");
  CHECK(config.model.attention == parse_attention("dense"));
  CHECK(config.train.lr == 0.25);
  CHECK(config.train.batch == 4);
  CHECK(config.train.steps == 13);
  CHECK(config.train.seed == 6);
  CHECK(resolve({"train", "--config", file, "--preset", "laptop-strided"}).preset == "laptop-strided");
}

TEST_CASE("options: --batch-tokens in whole sequences") {
  CHECK(resolve({"train", "--set", "n_ctx=128", "--batch-tokens", "1000"}).train.batch == 7);
  expect_error<UsageError>("--batch-tokens 100 is less than one sequence of n_ctx = 128", [] {
    resolve({"train", "--set", "n_ctx=128", "--batch-tokens", "100"});
  });
}

TEST_CASE("options: configurations that cannot be") {
  expect_error<UsageError>("--set must be key=value", [] { resolve({"train", "--set", "lr"}); });
  expect_error<UsageError>("--config", [] { resolve({"train", "--config", "/nonexistent.toml"}); });
  expect_error<UsageError>("d_model must be a multiple of n_heads", [] { resolve({"train", "--set", "n_heads=5"}); });
  expect_error<UsageError>("stride", [] { resolve({"train", "--set", "attention=column(stride=0)"}); });
  expect_error<UsageError>("unknown preset", [] { resolve({"train", "--preset", "desktop"}); });
}

}  // namespace
}  // namespace lacuna

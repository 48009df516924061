#include "experiments/metrics.h"

#include <sstream>

#include <nlohmann/json.hpp>

#include "core/file.h"
#include "tests/support/expect_error.h"
#include "tests/support/temporary_folder.h"

namespace lacuna {
namespace {

std::vector<int64_t> steps_of(const std::filesystem::path& path) {
  std::vector<int64_t> steps;
  std::istringstream lines(read_file(path));
  for (std::string line; std::getline(lines, line);) steps.push_back(nlohmann::json::parse(line).at("step"));
  return steps;
}

TEST_CASE("metrics: a step has the documented fields, an evaluation its own") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "metrics.jsonl";
  {
    MetricsFile metrics(path, 0);
    metrics.write(StepMetrics{.step = 1,
                              .samples = 2,
                              .tokens = 24,
                              .loss_nats = 1.0,
                              .lr = 0.5,
                              .grad_norm = 3.0,
                              .step_ms = 4.0,
                              .tokens_per_s = 6000.0,
                              .memory_bytes = 7,
                              .slower_than_dense = true});
    metrics.write(EvalMetrics{1, "valid", "ema", 2.5, 100});
  }
  std::istringstream lines(read_file(path));
  std::string first, second;
  std::getline(lines, first);
  std::getline(lines, second);
  const auto step = nlohmann::json::parse(first);
  CHECK(step.size() == 13);
  for (const char* key : {"step", "samples", "tokens", "loss_nats", "bits_per_dim", "lr", "grad_norm", "loss_scale",
                          "step_ms", "tokens_per_s", "mfu", "memory_bytes", "slower_than_dense"})
    CHECK_MESSAGE(step.contains(key), key);
  CHECK(step["bits_per_dim"].get<double>() == doctest::Approx(1.4426950408889634));
  CHECK(step["loss_scale"] == 1);
  CHECK(step["mfu"].is_null());
  CHECK(step["slower_than_dense"] == true);
  const auto evaluation = nlohmann::json::parse(second);
  CHECK(evaluation["eval"] == "valid");
  CHECK(evaluation["bits_per_dim"] == 2.5);
  CHECK(evaluation["n"] == 100);
}

TEST_CASE("metrics: resuming drops later steps and broken lines, and keeps the rest as it was") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "metrics.jsonl";
  {
    MetricsFile metrics(path, 0);
    for (int64_t step = 1; step <= 4; ++step) metrics.write(StepMetrics{.step = step});
    metrics.write(EvalMetrics{4, "valid", "ema", 2.0, 1});
  }
  const std::string whole = read_file(path);
  write_file(path, whole + "{\"step\": 5, \"loss_na");  // cut short by a kill
  {
    const MetricsFile metrics(path, 4);
    CHECK(read_file(path) == whole);
    CHECK(metrics.find("valid", "ema", 4).has_value());
    CHECK_FALSE(metrics.find("valid", "last", 4).has_value());
    CHECK_FALSE(metrics.find("test", "ema", 4).has_value());
  }
  {
    MetricsFile metrics(path, 2);
    metrics.write(StepMetrics{.step = 3});
  }
  CHECK(steps_of(path) == std::vector<int64_t>{1, 2, 3});
  const MetricsFile fresh(path, 0);
  CHECK(read_file(path).empty());
}

TEST_CASE("metrics: a file that cannot be written is an error that names it") {
  expect_error("/nonexistent/metrics.jsonl", [] { MetricsFile("/nonexistent/metrics.jsonl", 0); });
  if (!std::filesystem::exists("/dev/full")) return;
  MetricsFile full("/dev/full", 0);
  expect_error("No space left on device", [&] { full.write(StepMetrics{}); });
}

}  // namespace
}  // namespace lacuna

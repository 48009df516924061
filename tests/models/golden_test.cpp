// Parity with an independent implementation: tests/golden/README.md.

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "core/archive.h"
#include "core/file.h"
#include "ops/softmax_cross_entropy/softmax_cross_entropy.h"
#include "tests/models/tiny_models.h"

namespace lacuna {
namespace {

std::vector<std::filesystem::path> golden_cases() {
  std::vector<std::filesystem::path> folders;
  for (const auto& entry : std::filesystem::directory_iterator(LACUNA_SOURCE_DIR "/tests/golden"))
    if (entry.is_directory() && std::filesystem::exists(entry.path() / "model.safetensors"))
      folders.push_back(entry.path());
  std::sort(folders.begin(), folders.end());
  return folders;
}

/// max |got - expected| / max(max |expected|, 1e-3). The 1e-3 is for attention.k.bias, whose true gradient is zero: a
/// constant added to every key shifts all scores of a query alike.
double relative_error(const Tensor& got, const Tensor& expected) {
  REQUIRE(got.shape() == expected.shape());
  const std::vector<double> a = elements(got), b = elements(expected);
  double difference = 0.0, largest = 1e-3;
  for (size_t i = 0; i < a.size(); ++i) {
    REQUIRE(std::isfinite(a[i]));
    difference = std::max(difference, std::abs(a[i] - b[i]));
    largest = std::max(largest, std::abs(b[i]));
  }
  return difference / largest;
}

TEST_CASE("golden: loss, logits and every gradient are those of the independent implementation") {
  const std::vector<std::filesystem::path> folders = golden_cases();
  REQUIRE(folders.size() >= 10);
  for (const std::filesystem::path& folder : folders)
    for (const DType dtype : {DType::f64, DType::f32})
      for (const bool recompute : {false, true}) {
        CAPTURE(folder);
        CAPTURE(name_of(dtype));
        CAPTURE(recompute);
        const double tolerance = dtype == DType::f64 ? 1e-9 : 1e-4;
        const Archive weights(folder / "model.safetensors"), expected(folder / "expected.safetensors");
        ModelConfig config = model_config_from_strings(weights.metadata());
        config.recompute = recompute;
        const SparseTransformer model(config, /*seed=*/1, dtype);
        const std::string bytes = read_file(folder / "tokens.bin");
        const Tensor tokens = from_vector(std::vector<uint8_t>(bytes.begin(), bytes.end()),
                                          {static_cast<int64_t>(bytes.size()) / config.n_ctx, config.n_ctx});

        CHECK(weights.entries().size() == model.parameters().entries().size());
        for (const Parameters::Entry& entry : model.parameters().entries())
          weights.read_into(entry.name, entry.variable.value());
        const Variable logits = model(tokens, {});
        const Variable loss = softmax_cross_entropy(logits, tokens);
        backward(loss);

        CHECK(relative_error(loss.value(), expected.read("loss")) < tolerance);
        CHECK(relative_error(logits.value(), expected.read("logits")) < tolerance);
        for (const Parameters::Entry& entry : model.parameters().entries()) {
          CAPTURE(entry.name);
          CHECK(relative_error(entry.variable.grad(), expected.read("grad." + entry.name)) < tolerance);
        }
      }
}

}  // namespace
}  // namespace lacuna

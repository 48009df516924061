#include "experiments/evaluate.h"

#include <cmath>
#include <numbers>

#include "tests/experiments/tiny_run.h"
#include "tests/support/expect_error.h"

namespace lacuna {
namespace {

// A text of 31 bytes: two windows of 12 and a short one.
class TinyText : public Dataset {
 public:
  TinyText() {
    for (int i = 0; i < 31; ++i) text_ += static_cast<char>(i * 37 % 251);
  }
  std::string description() const override { return "tiny"; }
  std::string fingerprint() const override { return "tiny"; }
  int64_t n_ctx() const override { return 12; }
  Tensor train_batch(uint64_t, int64_t, int64_t) const override { return {}; }
  int64_t epoch_size() const override { return 2; }
  int64_t n_windows(Split) const override { return 3; }
  Tensor window(Split, int64_t index) const override {
    const std::string part = text_.substr(static_cast<size_t>(index) * 12, 12);
    return from_vector(std::vector<uint8_t>(part.begin(), part.end()), {1, static_cast<int64_t>(part.size())});
  }
  std::string_view bytes(Split) const override { return text_; }

 private:
  std::string text_;
};

// Bits of the last token of bytes[begin, end), alone.
double bits_of_last(const SparseTransformer& model, std::string_view bytes, int64_t begin, int64_t end) {
  const std::string_view part = bytes.substr(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  const Tensor tokens = from_vector(std::vector<uint8_t>(part.begin(), part.end()), {1, end - begin});
  const Tensor logits = model(tokens, Run{}).value();
  const float* last = logits.data<float>() + (end - begin - 1) * 256;
  double sum = 0.0;
  for (int64_t v = 0; v < 256; ++v) sum += std::exp(static_cast<double>(last[v]));
  return (std::log(sum) - static_cast<double>(last[static_cast<uint8_t>(part.back())])) / std::numbers::ln2;
}

TEST_CASE("evaluate: the mean over every byte once, the short window included") {
  const TinyRun run(1);
  const TinyText data;
  double expected = 0.0;
  for (int64_t t = 0; t < 31; ++t)
    expected += bits_of_last(run.model, data.bytes(Split::test), t / 12 * 12, t + 1) / 31;
  const Evaluation result =
      evaluate(run.model, data, {.split = Split::test, .min_context = std::nullopt, .progress = {}});
  CHECK(result.n == 31);
  CHECK(result.bits_per_dim == doctest::Approx(expected).epsilon(1e-5));
  const Evaluation first =
      evaluate(run.model, data, {.split = Split::test, .windows = 1, .min_context = std::nullopt, .progress = {}});
  CHECK(first.n == 12);
}

TEST_CASE("evaluate: sliding windows score every byte once, after at least min_context others") {
  const TinyRun run(1);
  const TinyText data;
  for (const int64_t min_context : {0, 5, 8, 11}) {
    CAPTURE(min_context);
    const int64_t s = 12 - min_context;
    double expected = 0.0;
    for (int64_t t = 0; t < 31; ++t) {
      const int64_t begin = t < 12 ? 0 : ((t - 12) / s + 1) * s;
      expected += bits_of_last(run.model, data.bytes(Split::test), begin, t + 1) / 31;
    }
    int64_t last_total = 0;
    const Evaluation result =
        evaluate(run.model, data,
                 {.split = Split::test, .min_context = min_context, .progress = [&](int64_t done, int64_t total) {
                    CHECK(done <= total);
                    last_total = total;
                  }});
    CHECK(result.n == 31);
    CHECK(last_total == 1 + (31 - 12 + s - 1) / s);
    CHECK(result.bits_per_dim == doctest::Approx(expected).epsilon(1e-5));
  }
  expect_error<UsageError>("--min-context must be from 0 to n_ctx - 1 = 11, got 12", [&] {
    evaluate(run.model, data, {.split = Split::test, .min_context = 12, .progress = {}});
  });
}

}  // namespace
}  // namespace lacuna

// The operations that move memory rather than multiply, in GB/s beside a copy by the same threads in the same run.
//
//   ops_benchmark [--benchmark_filter="copy|gelu"] [flags of Google Benchmark]
//
// Shapes are those of the model d = 256, n = 3072, whose optimizer updates 6.5 million parameters. Bytes are those that
// an operation cannot avoid: every input read once, every output written once. Prints the best and the median of the
// repetitions.

#include <benchmark/benchmark.h>
#include <fmt/core.h>
#include <omp.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "core/parallel.h"
#include "core/rng.h"
#include "ops/add/add.h"
#include "ops/add_dropout_layer_norm/add_dropout_layer_norm.h"
#include "ops/dropout/dropout.h"
#include "ops/embedding/embedding.h"
#include "ops/gelu/gelu.h"
#include "ops/layer_norm/layer_norm.h"
#include "ops/softmax_cross_entropy/softmax_cross_entropy.h"
#include "optim/adam.h"
#include "optim/clip.h"
#include "optim/ema.h"

namespace {

using namespace lacuna;

constexpr int64_t kRows = 3072, kModel = 256, kWide = 1024, kVocab = 256, kParameters = 6'500'000;

Tensor random_tensor(const Shape& shape, uint64_t seed) {
  const Tensor t = empty(shape, DType::f32);
  const Rng rng(seed, RandomPurpose::test);
  parallel_for(t.numel(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) t.data<float>()[i] = static_cast<float>(rng.uniform({}, i) * 2 - 1);
  });
  return t;
}

Tensor random_tokens() {
  const Tensor tokens = empty({1, kRows}, DType::u8);
  for (int64_t i = 0; i < kRows; ++i) tokens.data<uint8_t>()[i] = static_cast<uint8_t>(i * 89);
  return tokens;
}

/// Measures `fn`, which must touch `floats` floats.
void add_benchmark(const std::string& name, int64_t floats, const std::function<void()>& fn) {
  const auto measure = [=](benchmark::State& state) {
    for (auto _ : state) fn();
    state.SetBytesProcessed(state.iterations() * floats * int64_t{sizeof(float)});
  };
  benchmark::RegisterBenchmark(name.c_str(), measure)
      ->UseRealTime()
      ->Unit(benchmark::kMicrosecond)
      ->MinTime(0.05)
      ->Repetitions(9);
}

/// An operation forward, and forward and backward.
void add_op(const std::string& name, const Variable& x, int64_t forward_floats, int64_t both_floats,
            const std::function<Variable()>& op) {
  add_benchmark(name + " forward", forward_floats, [=] {
    const GradientMode off(false);
    benchmark::DoNotOptimize(op());
  });
  const Tensor dy = random_tensor(op().shape(), 9);
  add_benchmark(name + " both", both_floats, [=] {
    backward(op(), dy);
    if (x.requires_grad()) x.clear_grad();
  });
}

void add_all() {
  const Variable x(random_tensor({1, kRows, kModel}, 1), true), wide(random_tensor({1, kRows, kWide}, 2), true);
  const Variable gain(random_tensor({kModel}, 3), true), bias(random_tensor({kModel}, 4), true);
  const Variable logits(random_tensor({1, kRows, kVocab}, 5), true);
  const Tensor tokens = random_tokens();
  const int64_t narrow_floats = x.numel(), wide_floats = wide.numel();

  const Tensor from = random_tensor({1, kRows, kWide}, 6), to = empty_like(from);
  add_benchmark("copy", 2 * wide_floats, [=] {
    const float* const source = from.data<float>();
    float* const target = to.data<float>();
    parallel_for(from.numel(),
                 [=](int64_t begin, int64_t end) { std::copy(source + begin, source + end, target + begin); });
  });
  add_op("layer_norm", x, 2 * narrow_floats, 5 * narrow_floats, [=] { return layer_norm(x, gain, bias); });
  add_op("gelu", wide, 2 * wide_floats, 5 * wide_floats, [=] { return gelu(wide); });
  add_op("dropout", x, 2 * narrow_floats, 4 * narrow_floats,
         [=] { return dropout(x, 0.25f, 0, Run{.training = true}); });
  add_op("add_dropout_layer_norm", x, 4 * narrow_floats, 8 * narrow_floats,
         [=] { return add_dropout_layer_norm(x, x, 0.25f, 0, Run{.training = true}, gain, bias).norm; });
  add_benchmark("add forward", 3 * narrow_floats, [=] {
    const GradientMode off(false);
    benchmark::DoNotOptimize(add(x, x));
  });
  const Variable token(random_tensor({kVocab, kModel}, 7), true), start(random_tensor({kModel}, 8), true);
  const std::vector<Variable> position{Variable(random_tensor({32, kModel}, 9), true),
                                       Variable(random_tensor({32, kModel}, 10), true),
                                       Variable(random_tensor({3, kModel}, 11), true)};
  add_op("embedding", token, narrow_floats, 5 * narrow_floats, [=] {  // backward: a pass for each of four tables
    return embedding(tokens, token, position, start);
  });
  add_op("softmax_cross_entropy", logits, logits.numel(), 3 * logits.numel(),
         [=] { return softmax_cross_entropy(logits, tokens); });

  static const Parameters parameters({{"weight", {kParameters / kModel, kModel}, 0.02, 0.0}}, /*seed=*/1);
  fill(parameters.gradients(), 1e-3);
  static Adam adam(parameters, {});
  static Ema ema(parameters, 0.999);
  const int64_t n = parameters.count();
  add_benchmark("gradient norm", n, [] { benchmark::DoNotOptimize(global_gradient_norm(parameters)); });
  add_benchmark("adam", 7 * n, [] { adam.step(1e-4); });
  add_benchmark("ema", 3 * n, [] { ema.update(); });
}

/// A line for each benchmark when its repetitions are done. The first one is the copy that the others are compared
/// with.
class Table final : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override {
    fmt::print("{} threads\n{:<32} {:>8} {:>8} {:>8} {:>8} {:>8}\n", omp_get_max_threads(), "operation", "best us",
               "median", "GB/s", "median", "of copy");
    return true;
  }

  void ReportRuns(const std::vector<Run>& runs) override {
    std::vector<double> us;
    double bytes = 0.0;
    for (const Run& run : runs) {
      if (run.run_type != Run::RT_Iteration) continue;
      us.push_back(run.GetAdjustedRealTime());
      bytes = run.counters.at("bytes_per_second") * us.back() * 1e-6;
    }
    if (us.empty()) return;  // Google Benchmark's own mean and deviation come apart
    std::sort(us.begin(), us.end());
    const double best = us.front(), median = us[us.size() / 2], rate = bytes / best * 1e-3;
    if (copy_rate_ == 0.0) copy_rate_ = rate;
    fmt::print("{:<32} {:>8.0f} {:>8.0f} {:>8.1f} {:>8.1f} {:>7.0f}%\n", runs.front().run_name.function_name, best,
               median, rate, bytes / median * 1e-3, 100 * rate / copy_rate_);
    std::fflush(stdout);
  }

 private:
  double copy_rate_ = 0.0;
};

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  add_all();
  Table table;
  benchmark::RunSpecifiedBenchmarks(&table);
}

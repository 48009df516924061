// The training step as the programs run it, on the emulated GPU, or on a real one, against the CPU.

#include <numeric>

#include "experiments/device_step.h"
#include "models/sparse_transformer.h"
#include "optim/adam.h"
#include "optim/clip.h"
#include "optim/loss_scaler.h"
#include "tests/cuda_emulation/gpu_memory.h"
#include "tests/models/tiny_models.h"
#include "tests/support/tensors.h"

namespace lacuna::test {
namespace {

constexpr int64_t kBatch = 2, kCtx = 24, kSteps = 3;

ModelConfig tiny_model() {
  ModelConfig config;
  config.n_vocab = 13;
  config.n_ctx = kCtx;
  config.position_extents = {4, 6};
  config.d_model = 16;
  config.n_layers = 2;
  config.n_heads = 2;
  config.dropout = 0.2f;
  config.recompute = true;
  config.attention =
      parse_attention("local(window=6) | column(stride=6), fixed_block(stride=6) + fixed_summary(stride=6, c=2)");
  return config;
}

Tensor batch_of(int64_t step) { return random_tokens({kBatch, kCtx}, 13, static_cast<uint64_t>(100 + step)); }

struct Result {
  std::vector<double> losses, norms;
  Tensor values, average;
  std::vector<std::string> said;
};

/// kSteps steps in micro-batches of one sequence. With `waits` a step looks at its loss, which cannot be recorded.
Result train(DType dtype, Device device, bool waits = false) {
  Result result;
  const SparseTransformer model(tiny_model(), /*seed=*/3, dtype, device);
  const Parameters& parameters = model.parameters();
  Adam adam(parameters, {.eps = 1e-2});  // large beside the rounding of gradients: small ones do not decide signs
  Ema ema(parameters, 0.9);
  BatchQueue batches(device, batch_of);
  StepRunner runner(device, StepRunner::Recording::every_step,
                    [&](const std::string& line) { result.said.push_back(line); });
  NumberQueue numbers(device);
  const auto take = [&] {
    const std::vector<double> one = *numbers.pop();
    result.losses.push_back(0.5 * (one[0] + one[1]));
    result.norms.push_back(std::sqrt(one[2]));
  };
  for (int64_t step = 0; step < kSteps; ++step) {
    const Tensor tokens = batches.get(step);
    Tensor report;
    const auto enqueue = [&] {
      report = empty({3}, DType::f64, device);
      parameters.clear_gradients();
      for (int64_t i = 0; i < kBatch; ++i) {
        const Run run{.training = true, .seed = 5, .step = step, .first_sample = i};
        const Variable loss = model.loss(tokens.slice(i, i + 1), run);
        if (waits) item(loss.value());
        copy(loss.value(), report.view(i, {}));
        backward(loss, full({}, loss.dtype(), 0.5, device));
      }
      const Tensor squares = gradient_sum_of_squares(parameters);
      copy(squares, report.view(2, {1}));
      adam.step({.lr = 0.02 * static_cast<double>(step + 1), .sum_of_squares = squares, .max_norm = 0.5, .ema = &ema});
    };
    const int64_t adam_steps = adam.steps(), updates = ema.updates();
    runner.run(enqueue, [&] {
      adam.set_steps(adam_steps);
      ema.set_updates(updates);
    });
    numbers.push(report);
    batches.prefetch_next();
    if (numbers.size() > 1) take();
  }
  take();
  parameters.check_rounded();
  result.values = to_device(parameters.values(), kCpu);
  result.average = to_device(ema.average(), kCpu);
  return result;
}

Tensor as_tensor(const std::vector<double>& numbers) {
  return from_vector(numbers, {static_cast<int64_t>(numbers.size())});
}

const Result& on_gpu() {
  static const Result once = train(DType::f32, kCuda);
  return once;
}

TEST_CASE("gpu training: losses, norms and weights are those of the CPU, step by step") {
  const Result exact = train(DType::f64, kCpu), plain = train(DType::f32, kCpu);
  CHECK(on_gpu().said.empty());
  const SparseTransformer untrained(tiny_model(), /*seed=*/3, DType::f64);
  CHECK(max_distance(exact.values, untrained.parameters().values()) > 1e-2);  // or the comparison would mean nothing
  const auto near = [](const Tensor& a, const Tensor& p, const Tensor& e) {
    CHECK(max_distance(a, e) <= 4.0 * max_distance(p, e) + 16.0 * 0x1p-24 * std::max(1.0, max_abs(e)));
  };
  near(as_tensor(on_gpu().losses), as_tensor(plain.losses), as_tensor(exact.losses));
  near(as_tensor(on_gpu().norms), as_tensor(plain.norms), as_tensor(exact.norms));
  near(on_gpu().values, plain.values, exact.values);
  near(on_gpu().average, plain.average, exact.average);
}

TEST_CASE("gpu training: in bf16 and f16 as near to f64 as the CPU's") {
  const Result exact = train(DType::f64, kCpu);
  for (const DType dtype : {DType::bf16, DType::f16}) {
    CAPTURE(name_of(dtype));
    const Result plain = train(dtype, kCpu), fast = train(dtype, kCuda);
    const double rounding = dtype == DType::bf16 ? 0x1p-8 : 0x1p-11;
    const auto near = [&](const std::vector<double>& a, const std::vector<double>& p, const std::vector<double>& e) {
      CHECK(max_distance(as_tensor(a), as_tensor(e)) <=
            2.0 * max_distance(as_tensor(p), as_tensor(e)) + rounding * max_abs(as_tensor(e)));
    };
    near(fast.losses, plain.losses, exact.losses);
    near(fast.norms, plain.norms, exact.norms);
  }
}

TEST_CASE("gpu training: the same bits in every run and without a graph; nothing stays in the device's memory") {
  on_gpu();            // with what the first product needs for good
  synchronize(kCuda);  // frees of what came before
  const int64_t before = gpu_bytes_in_use();
  const Result again = train(DType::f32, kCuda);
  synchronize(kCuda);
  CHECK(gpu_bytes_in_use() == before);
  CHECK(same_bits(on_gpu().values, again.values));

  const Result without = train(DType::f32, kCuda, /*waits=*/true);
  REQUIRE(without.said.size() == 1);
  CHECK(without.said[0].starts_with("note: steps run kernel by kernel, not as a CUDA graph: "));
  CHECK(same_bits(on_gpu().values, without.values));
  CHECK(on_gpu().losses == without.losses);
}

/// The losses of the model of tests/models/mixed_precision_test.cpp, with heads wide enough for tensor cores, which
/// learns one text by heart.
std::vector<double> training_curve(DType dtype, int64_t steps) {
  ModelConfig config = tiny_config("local(window=4), column(stride=4)");
  config.d_model = config.d_qk = 32;
  config.dropout = 0.1f;
  const SparseTransformer model(config, /*seed=*/1, dtype, kCuda);
  const Parameters& parameters = model.parameters();
  Adam adam(parameters, {});
  LossScaler scaler(/*dynamic=*/dtype == DType::f16);
  const Tensor tokens = to_device(random_tokens(Shape{4, config.n_ctx}, config.n_vocab, 1), kCuda);
  std::vector<double> losses;
  for (int64_t step = 0; step < steps; ++step) {
    const double scale = scaler.scale();
    parameters.clear_gradients();
    const Variable loss = model.loss(tokens, {.training = true, .seed = 2, .step = step});
    losses.push_back(item(loss.value()));
    backward(loss, full({}, loss.dtype(), scale, kCuda));
    const Tensor squares = gradient_sum_of_squares(parameters);
    if (scaler.update(std::sqrt(item(squares)) / scale))
      adam.step({.lr = 1e-3, .scale = 1.0 / scale, .sum_of_squares = squares, .max_norm = 1.0});
  }
  return losses;
}

TEST_CASE("gpu training: the curves of bf16 and f16 stay in a band around that of f32") {
  constexpr int64_t kCurve = LACUNA_ON_GPU ? 100 : 5;
  const std::vector<double> exact = training_curve(DType::f32, kCurve);
  CHECK(exact.back() < (LACUNA_ON_GPU ? 0.6 : 1.0) * exact.front());  // it learns
  for (const DType dtype : {DType::bf16, DType::f16}) {
    const std::vector<double> curve = training_curve(dtype, kCurve);
    double furthest = 0.0;
    for (size_t i = 0; i < exact.size(); ++i) furthest = std::max(furthest, std::abs(curve[i] - exact[i]));
    CAPTURE(name_of(dtype));
    CHECK(furthest > 0.0);
    CHECK(furthest < 0.1);  // nats; on the CPU 0.036
  }
}

}  // namespace
}  // namespace lacuna::test

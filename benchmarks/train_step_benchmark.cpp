// Tokens per second and peak memory of a full training step: forward, recompute, backward, clipping, Adam, EMA.
//
//   build/bin/train_step_benchmark [--weights FOLDER] [NAME...]     names: see cases(); default: all but cifar10-59m
//
// Each case runs short steps for a while and prints the best and the median one: machines with other guests are noisy.
// The loss printed is that of the final weights on the benchmark's (random) tokens. --weights writes both there, so that
// benchmarks/pytorch/train_step.py can show that it computes the same function.

#include <fmt/core.h>
#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "benchmarks/timing.h"
#include "core/archive.h"
#include "core/file.h"
#include "core/rng.h"
#include "models/sparse_transformer.h"
#include "optim/adam.h"
#include "optim/clip.h"
#include "optim/ema.h"

namespace {

using namespace lacuna;

struct Case {
  const char* name;
  const char* what;
  int64_t batch;
  ModelConfig model;
};

constexpr const char* kStrided =
    "column(stride=96), local(window=96), local(window=96), local(window=96)";

ModelConfig image_model(int64_t d_model, int64_t n_layers, int64_t n_heads, const char* attention, bool recompute) {
  ModelConfig config;
  config.n_ctx = 3072;
  config.d_model = d_model;
  config.n_layers = n_layers;
  config.n_heads = n_heads;
  config.position_extents = {32, 32, 3};
  config.attention = parse_attention(attention);
  config.recompute = recompute;
  return config;
}

std::vector<Case> cases() {
  ModelConfig cifar = image_model(256, 128, 2, kStrided, true);
  cifar.d_qk = 128;
  cifar.d_ff = 512;
  cifar.dropout = 0.25f;
  return {
      {"rival", "d = 256, 8 layers, 4 heads, n = 3072, strided 1:3", 1, image_model(256, 8, 4, kStrided, false)},
      {"rival-recompute", "the same, recomputing blocks in backward", 1, image_model(256, 8, 4, kStrided, true)},
      {"rival-dense", "the same, dense attention", 1, image_model(256, 8, 4, "dense", false)},
      {"cifar10-59m", "CIFAR-10 59M of the paper, strided 1:3, recompute", 1, cifar},
  };
}

Tensor random_tokens(int64_t batch, int64_t n_ctx) {
  const Tensor tokens = empty(Shape{batch, n_ctx}, DType::u8);
  const Rng rng(1, RandomPurpose::test);
  for (int64_t i = 0; i < tokens.numel(); ++i) tokens.data<uint8_t>()[i] = rng.bits({}, i).word[0] & 0xffu;
  return tokens;
}

void write_model(const std::filesystem::path& folder, const SparseTransformer& model, const Tensor& tokens) {
  std::filesystem::create_directories(folder);
  std::vector<NamedTensor> weights;
  for (const Parameters::Entry& entry : model.parameters().entries())
    weights.push_back({entry.name, entry.variable.value()});
  write_archive(folder / "model.safetensors", weights, to_strings(model.config()));
  write_file(folder / "tokens.bin", {reinterpret_cast<const char*>(tokens.raw()), static_cast<size_t>(tokens.bytes())});
}

void measure(const Case& c, const std::filesystem::path& weights_folder) {
  Allocator::of(kCpu).release_cached();
  Allocator::of(kCpu).reset_peak();
  const SparseTransformer model(c.model, /*seed=*/1);
  Adam adam(model.parameters(), {});
  Ema ema(model.parameters(), 0.999);
  const Tensor tokens = random_tokens(c.batch, c.model.n_ctx);

  Run run{.training = true, .seed = 1};
  const Timing timing = time_runs([&] {
    model.parameters().clear_gradients();
    const Variable loss = model.loss(tokens, run);
    backward(loss);
    adam.step(1e-4, clip_scale(global_gradient_norm(model.parameters()), 1.0));
    ema.update();
    ++run.step;
  });
  const GradientMode off(false);
  const double loss_nats = static_cast<double>(model.loss(tokens, {}).value().data<float>()[0]);
  const double tokens_per_step = static_cast<double>(tokens.numel());
  fmt::print("{:<16} {:>8.0f} {:>8.0f} {:>9.1f} {:>9.1f} {:>8.0f} {:>5}  {} (loss {:.3f} nats)\n", c.name,
             tokens_per_step / timing.best_s, tokens_per_step / timing.median_s, timing.best_s * 1e3,
             timing.median_s * 1e3, static_cast<double>(Allocator::of(kCpu).stats().total_peak) / (1 << 20), timing.runs,
             c.what, loss_nats);
  std::fflush(stdout);
  if (!weights_folder.empty()) write_model(weights_folder, model, tokens);
}

}  // namespace

int main(int argc, char** argv) {
  std::filesystem::path weights_folder;
  std::vector<std::string> names;
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--weights" && i + 1 < argc)
      weights_folder = argv[++i];
    else
      names.emplace_back(argv[i]);
  }
  try {
    fmt::print("{:<16} {:>8} {:>8} {:>9} {:>9} {:>8} {:>5}\n", "training step", "tokens/s", "median", "best ms", "median",
               "peak MiB", "runs");
    size_t done = 0;
    for (const Case& c : cases()) {
      const bool named = std::find(names.begin(), names.end(), c.name) != names.end();
      if (names.empty() ? std::string(c.name) == "cifar10-59m" : !named) continue;
      measure(c, weights_folder);
      ++done;
    }
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    fmt::print("peak MiB counts tensors; the whole process held {} MiB at most\n", usage.ru_maxrss / 1024);
    check_usage(done >= std::max<size_t>(names.size(), 1), "train_step_benchmark: unknown case among the arguments");
  } catch (const UsageError& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}

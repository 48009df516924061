// Tokens per second and peak memory of a full training step (forward, recompute, backward, clipping, Adam, averaged
// weights), and of the same model trained by PyTorch.
//
//   train_step_benchmark [--seconds=10] [--runs=5] [--python=python3] [--weights=FOLDER] [NAME...]
//
// A NAME is one of kRivals or a preset, as enwik8/laptop or imagenet64/imagenet64-152m; presets run one micro-batch.
// Every case has a process of its own, so that its resident memory is its own, and prints the best and the median of
// many short steps. After the case `rival`, PyTorch trains the weights and tokens that it ended with: both print their
// loss on them. Its attention is dense under the mask: a softmax between two products, scaled_dot_product_attention,
// and that through torch.compile. "elsewhere" is the time that other processes took of the CPUs meanwhile: above a few
// percent the row says more about them.

#include <fmt/core.h>
#include <omp.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "benchmarks/timing.h"
#include "core/archive.h"
#include "core/file.h"
#include "core/rng.h"
#include "experiments/environment.h"
#include "experiments/presets.h"
#include "models/sparse_transformer.h"
#include "optim/adam.h"
#include "optim/clip.h"
#include "optim/ema.h"

namespace {

using namespace lacuna;
namespace fs = std::filesystem;
using nlohmann::json;

struct Options {
  double seconds = 10.0;
  int64_t runs = 5;
  std::string python = std::getenv("PYTHON") ? std::getenv("PYTHON") : "python3";
  std::vector<std::string> pytorch{"products", "sdpa", "compile"};  // its ways to run the rival
  fs::path weights;
  std::vector<std::string> names{"rival",
                                 "rival-recompute",
                                 "rival-dense",
                                 "enwik8/laptop",
                                 "cifar10/laptop-strided",
                                 "cifar10/laptop-fixed",
                                 "cifar10/laptop-dense",
                                 "cifar10/cifar10-59m-strided"};
};

struct Case {
  int64_t batch = 1;
  ModelConfig model;
};

// d = 256, 8 layers, n = 3072: small enough for PyTorch, whose attention is dense under the pattern's mask.
ModelConfig rival_model(const char* attention, bool recompute) {
  return {.n_ctx = 3072,
          .d_model = 256,
          .n_layers = 8,
          .n_heads = 4,
          .position_extents = {32, 32, 3},
          .attention = parse_attention(attention),
          .recompute = recompute};
}

constexpr const char* kStrided = "column(stride=96), local(window=96), local(window=96), local(window=96)";
const std::map<std::string, ModelConfig> kRivals{{"rival", rival_model(kStrided, false)},
                                                 {"rival-recompute", rival_model(kStrided, true)},
                                                 {"rival-dense", rival_model("dense", false)}};

Case find_case(const std::string& name) {
  if (const auto rival = kRivals.find(name); rival != kRivals.end()) return {1, rival->second};
  const size_t slash = name.find('/');
  check_usage(slash != std::string::npos, "train_step_benchmark: '", name,
              "' must be rival, rival-recompute, rival-dense or PROGRAM/PRESET");
  const ExperimentConfig& config = find_preset(name.substr(0, slash), name.substr(slash + 1)).config;
  return {config.train.micro_batch > 0 ? config.train.micro_batch : config.train.batch, config.model};
}

// --- One case, in a process of its own

Tensor random_tokens(int64_t batch, int64_t n_ctx) {
  const Tensor tokens = empty(Shape{batch, n_ctx}, DType::u8);
  const Rng rng(1, RandomPurpose::test);
  for (int64_t i = 0; i < tokens.numel(); ++i) tokens.data<uint8_t>()[i] = rng.bits({}, i).word[0] & 0xffu;
  return tokens;
}

void write_model(const fs::path& folder, const SparseTransformer& model, const Tensor& tokens) {
  fs::create_directories(folder);
  std::vector<NamedTensor> weights;
  for (const Parameters::Entry& entry : model.parameters().entries())
    weights.push_back({entry.name, entry.variable.value()});
  write_archive(folder / "model.safetensors", weights, to_strings(model.config()));
  write_file(folder / "tokens.bin", {reinterpret_cast<const char*>(tokens.raw()), static_cast<size_t>(tokens.bytes())});
}

/// Prints what benchmarks/pytorch/train_step.py --json prints, by the same names.
void measure(const Case& c, const Options& options, const fs::path& weights) {
  const SparseTransformer model(c.model, /*seed=*/1);
  Adam adam(model.parameters(), {});
  Ema ema(model.parameters(), 0.999);
  const Tensor tokens = random_tokens(c.batch, c.model.n_ctx);

  Run run{.training = true, .seed = 1};
  const Timing timing = time_runs(
      [&] {
        model.parameters().clear_gradients();
        backward(model.loss(tokens, run));
        adam.step(1e-4, clip_scale(global_gradient_norm(model.parameters()), 1.0));
        ema.update();
        ++run.step;
      },
      options.seconds, options.runs);
  const GradientMode off(false);
  const json result{{"tokens", tokens.numel()},
                    {"best_ms", timing.best_s * 1e3},
                    {"median_ms", timing.median_s * 1e3},
                    {"steps", timing.runs},
                    {"peak_tensor_bytes", Allocator::of(kCpu).stats().total_peak},
                    {"loss_nats", model.loss(tokens, {}).value().data<float>()[0]}};
  fmt::print("{}\n", result.dump());
  if (!weights.empty()) write_model(weights, model, tokens);
}

struct Child {
  json result;
  double resident_mib = 0.0;  // at most
  double elsewhere = 0.0;     // CPU time of other processes, as a part of what all CPUs could give
};

/// Seconds that all CPUs were busy since the machine started.
double busy_seconds() {
  std::ifstream stat("/proc/stat");
  std::string cpu;
  double user = 0, nice = 0, system = 0, idle = 0, iowait = 0, irq = 0, softirq = 0, steal = 0;
  stat >> cpu >> user >> nice >> system >> idle >> iowait >> irq >> softirq >> steal;
  return (user + nice + system + irq + softirq + steal) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

double seconds_of(const timeval& t) { return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec); }

/// Runs `body` in a child, which prints a line of JSON. This process has no threads yet, so it may fork.
Child in_child(const std::function<void()>& body) {
  int ends[2];
  check(::pipe(ends) == 0, "train_step_benchmark: no pipe");
  std::fflush(nullptr);
  const auto start = std::chrono::steady_clock::now();
  const double busy_before = busy_seconds();
  const pid_t pid = ::fork();
  check(pid >= 0, "train_step_benchmark: no process");
  if (pid == 0) {
    ::dup2(ends[1], STDOUT_FILENO);
    ::close(ends[0]), ::close(ends[1]);
    int status = 0;
    try {
      body();
    } catch (const std::exception& error) {
      fmt::print(stderr, "{}\n", error.what());
      status = 1;
    }
    std::fflush(nullptr);
    ::_exit(status);
  }
  ::close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t n; (n = ::read(ends[0], buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(n));
  ::close(ends[0]);

  int status = 0;
  rusage usage{};
  check(::wait4(pid, &status, 0, &usage) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0,
        "train_step_benchmark: a measurement failed");
  const double wall_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const double others_s = busy_seconds() - busy_before - seconds_of(usage.ru_utime) - seconds_of(usage.ru_stime);
  return {json::parse(text), static_cast<double>(usage.ru_maxrss) / 1024,
          std::max(0.0, others_s / (wall_s * static_cast<double>(::sysconf(_SC_NPROCESSORS_ONLN))))};
}

// --- The table

void print_row(const std::string& name, const Child& child, const std::string& note) {
  const double tokens = child.result["tokens"], best_ms = child.result["best_ms"],
               median_ms = child.result["median_ms"];
  const bool ours = child.result.contains("peak_tensor_bytes");
  const std::string tensors =
      ours ? fmt::format("{:.0f}", child.result["peak_tensor_bytes"].get<double>() / (1 << 20)) : "";
  fmt::print("{:<44} {:>8.0f} {:>8.0f} {:>9.1f} {:>9.1f} {:>5} {:>8.0f} {:>8} {:>8.1f}%  {}\n", name,
             1e3 * tokens / best_ms, 1e3 * tokens / median_ms, best_ms, median_ms, child.result["steps"].get<int64_t>(),
             child.resident_mib, tensors, 100 * child.elsewhere, note);
  std::fflush(stdout);
}

std::string describe(const Case& c) {
  return fmt::format("n = {}, d = {}, {} layers, batch {}{}", c.model.n_ctx, c.model.d_model, c.model.n_layers, c.batch,
                     c.model.recompute ? ", recompute" : "");
}

/// PyTorch on the weights and tokens in `folder`, in each of its ways to compute the same.
void measure_pytorch(const Options& options, const fs::path& folder, const json& ours) {
  double fastest_ms = 0.0, fastest_median_ms = 0.0;
  for (const std::string& way : options.pytorch) {
    std::vector<std::string> command{options.python,
                                     LACUNA_SOURCE_DIR "/benchmarks/pytorch/train_step.py",
                                     "--json",
                                     "--threads",
                                     std::to_string(omp_get_max_threads()),
                                     "--steps",
                                     std::to_string(options.runs),
                                     "--weights",
                                     folder / "model.safetensors",
                                     "--tokens",
                                     folder / "tokens.bin"};
    if (way == "compile")
      command.emplace_back("--compile");
    else
      command.insert(command.end(), {"--kernel", way});
    const Child child = in_child([&] {
      std::vector<char*> arguments;
      for (std::string& argument : command) arguments.push_back(argument.data());
      arguments.push_back(nullptr);
      ::execvp(arguments[0], arguments.data());
      fmt::print("{}\n", json{{"pytorch", nullptr}, {"absent", "cannot run"}}.dump());
    });
    if (child.result["pytorch"].is_null()) {
      fmt::print("PyTorch: absent ({} cannot import torch); --python names one that can\n", options.python);
      return;
    }
    const std::string version = child.result["pytorch"];
    if (child.result.contains("absent")) {
      fmt::print("  PyTorch {}, {}: {}\n", version, way, child.result["absent"].get<std::string>());
      continue;
    }
    const double best_ms = child.result["best_ms"], median_ms = child.result["median_ms"];
    if (fastest_ms == 0.0 || best_ms < fastest_ms) fastest_ms = best_ms, fastest_median_ms = median_ms;
    print_row(fmt::format("  PyTorch {}, {}", version, way), child,
              fmt::format("ours is {:.2f}x, median {:.2f}x; loss {:.6f}", best_ms / ours["best_ms"].get<double>(),
                          median_ms / ours["median_ms"].get<double>(), child.result["loss_nats"].get<double>()));
  }
  if (fastest_ms > 0.0)
    fmt::print("  rival against the fastest PyTorch: {:.2f}x, median {:.2f}x; loss of the same weights, ours {:.6f}\n",
               fastest_ms / ours["best_ms"].get<double>(), fastest_median_ms / ours["median_ms"].get<double>(),
               ours["loss_nats"].get<double>());
}

void run(const Options& options) {
  std::vector<Case> cases;
  for (const std::string& name : options.names) cases.push_back(find_case(name));
  fmt::print("{}, {}, f32\n", version(), cpu_description());
  fmt::print("{:<44} {:>8} {:>8} {:>9} {:>9} {:>5} {:>8} {:>8} {:>9}\n", "training step", "tokens/s", "median",
             "best ms", "median", "runs", "resident", "tensors", "elsewhere");
  for (size_t i = 0; i < cases.size(); ++i) {
    const bool rival = options.names[i] == "rival";
    std::string scratch = fs::temp_directory_path() / "lacuna-rival-XXXXXX";
    if (rival && options.weights.empty()) check(::mkdtemp(scratch.data()) != nullptr, "no folder ", scratch);
    const fs::path folder = rival ? options.weights.empty() ? fs::path(scratch) : options.weights : fs::path();
    const Child child = in_child([&] { measure(cases[i], options, folder); });
    print_row(options.names[i], child, describe(cases[i]));
    if (!rival) continue;
    measure_pytorch(options, folder, child.result);
    if (options.weights.empty()) fs::remove_all(folder);
  }
  fmt::print("resident: MiB of the whole process at most; tensors: MiB that its tensors held at most\n");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Tokens per second and memory of a training step, beside PyTorch's");
  Options options;
  std::string weights;
  app.add_option("--seconds", options.seconds, "time for each case")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--runs", options.runs, "at least so many steps, after one to warm up")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--python", options.python, "has PyTorch (default: $PYTHON, else python3)");
  app.add_option("--pytorch", options.pytorch, "its ways to run the case rival: products, sdpa, compile")
      ->check(CLI::IsMember({"products", "sdpa", "compile"}))
      ->delimiter(',')
      ->allow_extra_args(false);
  app.add_option("--weights", weights, "folder to keep the weights and tokens of the case rival in");
  app.add_option("NAME", options.names, "rival, rival-recompute, rival-dense, PROGRAM/PRESET");
  CLI11_PARSE(app, argc, argv);
  options.weights = weights;
  try {
    run(options);
  } catch (const UsageError& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}

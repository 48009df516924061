// Tokens per second and peak memory of a full training step (forward, recompute, backward, clipping, Adam, averaged
// weights), and of the same model trained by PyTorch.
//
//   train_step_benchmark [--seconds=10] [--runs=5] [--warm-up=1] [--python=python3] [--weights=FOLDER] [NAME...]
//   train_step_benchmark --device=cuda --dtype=bf16 --batch=12 --recompute=auto --text=FILE --json
//   imagenet64/imagenet64-152m
//
// A NAME is one of kRivals or a preset, as enwik8/laptop or imagenet64/imagenet64-152m; presets run one micro-batch.
// A step is that of the programs: on a GPU one CUDA graph, whose loss is read while the next step runs.
// Every case has a process of its own, so that its resident memory is its own, and prints the best and the median of
// many short steps. After the case `rival`, PyTorch trains weights and tokens that it leaves: both print their loss on
// them (on the CPU; scripts/gpu_check has its rivals of a GPU). Its attention is dense under the mask: a
// softmax between two products, scaled_dot_product_attention, and that through torch.compile. "elsewhere" is the time
// that other processes took of the CPUs meanwhile: above a few percent the row says more about them.

#include <fmt/core.h>
#include <omp.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "core/archive.h"
#include "core/file.h"
#include "core/parallel.h"
#include "core/rng.h"
#include "experiments/device_step.h"
#include "experiments/environment.h"
#include "experiments/parse.h"
#include "experiments/presets.h"
#include "models/cost.h"
#include "models/sampler.h"
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
  int64_t runs = 5, warm_up = -1;
  std::string python = std::getenv("PYTHON") ? std::getenv("PYTHON") : "python3";
  std::vector<std::string> pytorch{"products", "sdpa", "compile"};  // its ways to run the rival
  std::string device = "cpu", dtype = "f32", recompute = "preset";
  int64_t batch = 0, samples = 0;
  bool json = false;
  fs::path weights, text;
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
  const int64_t micro_batch = config.train.micro_batch > 0 ? config.train.micro_batch : config.train.batch;
  return {micro_batch, config.model};
}

// --- One case, in a process of its own

/// Random bytes, the same for every step; or, of a text, what comes next in it.
Tensor tokens_of(const std::string& text, int64_t step, const Shape& shape) {
  const Tensor tokens = empty(shape, DType::u8);
  const Rng rng(1, RandomPurpose::test);
  const auto size = static_cast<int64_t>(text.size());
  for (int64_t i = 0; i < tokens.numel(); ++i)
    tokens.data<uint8_t>()[i] = text.empty() ? static_cast<uint8_t>(rng.bits({}, i).word[0])
                                             : static_cast<uint8_t>(text[(step * tokens.numel() + i) % size]);
  return tokens;
}

bool recomputes(const Case& c, const Options& options, DType dtype, Device device) {
  if (options.recompute == "preset") return c.model.recompute;
  if (options.recompute != "auto") return options.recompute == "true";
  if (device == kCpu) return false;
  ModelConfig keeping = c.model;
  keeping.recompute = false;
  const auto bytes = training_bytes(keeping, {.batch = c.batch, .dtype = dtype});
  return std::accumulate(bytes.begin(), bytes.end(), int64_t{0}) > gpu::properties(device).memory_bytes / 10 * 9;
}

/// Random weights with which every part of the model shows in its logits: after so few steps attention hardly does.
void enliven(const Parameters& parameters) {
  const Rng rng(2, RandomPurpose::test);
  int64_t index = 0;
  for (const Parameters::Entry& entry : parameters.entries()) {
    const Tensor values = clone(to_device(entry.variable.value(), kCpu));
    const bool matrix = entry.shape.rank() == 2;
    const float kept = matrix ? 0.0f : 1.0f,
                std = matrix ? 1.0f / std::sqrt(static_cast<float>(entry.shape.dim(1))) : 0.1f;
    float* const x = values.data<float>();
    parallel_for(values.numel(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        x[i] = kept * x[i] + std * static_cast<float>(rng.normal({.op = index}, i));
    });
    copy(values, entry.variable.value());
    ++index;
  }
  parameters.update_rounded();
}

/// Weights and tokens, and the logits of the first sequence.
void write_model(const fs::path& folder, const SparseTransformer& model, const Tensor& tokens) {
  fs::create_directories(folder);
  const Tensor logits = model(to_device(tokens.slice(0, 1), model.parameters().values().device()), {}).value();
  write_archive(folder / "logits.safetensors", {{"logits", to_device(to_dtype(logits, DType::f32), kCpu)}}, {});
  std::vector<NamedTensor> weights;
  for (const Parameters::Entry& entry : model.parameters().entries())
    weights.push_back({entry.name, to_device(entry.variable.value(), kCpu)});
  write_archive(folder / "model.safetensors", weights, to_strings(model.config()));
  write_file(folder / "tokens.bin", {reinterpret_cast<const char*>(tokens.raw()), static_cast<size_t>(tokens.bytes())});
}

/// Bytes of a GPU that this process and others have, the CUDA context and graphs included.
json memory_in_use(Device device) {
  if (device == kCpu) return nullptr;
  return gpu::properties(device).memory_bytes - gpu::free_bytes(device);
}

/// Draws whole sequences, all at once, from untrained weights: that takes as long as from trained ones. After limit_s
/// it stops, and the rate is that of the positions done so far.
void measure_sampling(const std::string& name, const SparseTransformer& model, int64_t count, double limit_s,
                      Device device) {
  struct TimeIsOver {};
  sample(model, {.count = count, .length = 2});  // chooses algorithms
  const auto start = std::chrono::steady_clock::now();
  int64_t positions = 0;
  double elapsed_s = 0.0;
  try {
    sample(model, {.count = count}, {}, [&](int64_t done) {
      positions = done;
      elapsed_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      if (elapsed_s > limit_s) throw TimeIsOver();
    });
  } catch (const TimeIsOver&) {
  }
  const int64_t n_ctx = model.config().n_ctx;
  const double samples = static_cast<double>(count) * static_cast<double>(positions) / static_cast<double>(n_ctx);
  fmt::print("{}\n", json{{"name", name},
                          {"device", describe(device)},
                          {"samples", count},
                          {"length", n_ctx},
                          {"positions", positions},
                          {"seconds", elapsed_s},
                          {"samples_per_s", samples / elapsed_s},
                          {"peak_tensor_bytes", Allocator::of(device).stats().total_peak},
                          {"device_memory_bytes", memory_in_use(device)}}
                         .dump());
}

/// Prints what benchmarks/pytorch/train_step.py --json prints, by the same names.
void measure(const std::string& name, Case c, const Options& options, const fs::path& weights) {
  using Clock = std::chrono::steady_clock;
  const DType dtype = parse_dtype(options.dtype);
  const Device device = choose_device(options.device, {c.model, dtype, /*training=*/true});
  const std::string text = options.text.empty() ? "" : read_file(options.text);
  c.model.recompute = recomputes(c, options, dtype, device);
  const Shape shape{c.batch, c.model.n_ctx};
  const SparseTransformer model(c.model, /*seed=*/1, dtype, device);
  if (options.samples > 0) return measure_sampling(name, model, options.samples, options.seconds, device);
  const Parameters& parameters = model.parameters();
  Adam adam(parameters, {});
  Ema ema(parameters, 0.999);
  BatchQueue batches(device, [&](int64_t step) { return tokens_of(text, step, shape); });
  StepRunner runner(device, StepRunner::Recording::every_step);
  NumberQueue numbers(device);

  std::vector<double> losses, times_ms;
  Clock::time_point last = Clock::now();
  const auto take = [&] {
    losses.push_back(numbers.pop()->front());
    const Clock::time_point now = Clock::now();
    times_ms.push_back(1e3 * std::chrono::duration<double>(now - last).count());
    last = now;
  };
  // The first steps are not timed: on a GPU they choose algorithms, and make the graph.
  const int64_t warm_up = options.warm_up >= 0 ? options.warm_up : device == kCpu ? 1 : 3;
  const Clock::time_point start = Clock::now();
  const auto elapsed_s = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  for (Run run{.training = true, .seed = 1}; run.step < warm_up + options.runs || elapsed_s() < options.seconds;
       ++run.step) {
    const Tensor tokens = batches.get(run.step);
    Tensor report;
    const auto enqueue = [&] {
      report = empty({1}, DType::f64, device);
      parameters.clear_gradients();
      const Variable loss = model.loss(tokens, run);
      copy(loss.value(), report.view(0, {}));
      backward(loss);
      adam.step({.lr = 1e-4, .sum_of_squares = gradient_sum_of_squares(parameters), .max_norm = 1.0, .ema = &ema});
    };
    runner.run(enqueue, [&] {
      adam.set_steps(run.step);
      ema.set_updates(run.step);
    });
    numbers.push(report);
    batches.prefetch_next();
    if (device == kCpu || numbers.size() > 1) take();
  }
  while (numbers.size() > 0) take();

  const Tensor tokens = tokens_of(text, /*step=*/0, shape);
  const GradientMode off(false);
  if (!weights.empty()) enliven(parameters);
  const double loss_nats = item(model.loss(to_device(tokens, device), {}).value());
  times_ms.erase(times_ms.begin(), times_ms.begin() + warm_up);
  std::sort(times_ms.begin(), times_ms.end());
  const ComputeCost cost = compute_cost(c.model);
  fmt::print("{}\n", json{{"name", name},
                          {"device", describe(device)},
                          {"dtype", options.dtype},
                          {"batch", c.batch},
                          {"n_ctx", c.model.n_ctx},
                          {"d_model", c.model.d_model},
                          {"n_layers", c.model.n_layers},
                          {"recompute", c.model.recompute},
                          {"parameters", cost.parameters},
                          {"model_flops", 3.0 * cost.forward() * static_cast<double>(c.batch)},
                          {"tokens", tokens.numel()},
                          {"best_ms", times_ms.front()},
                          {"median_ms", times_ms[times_ms.size() / 2]},
                          {"steps", times_ms.size()},
                          {"peak_tensor_bytes", Allocator::of(device).stats().total_peak},
                          {"device_memory_bytes", memory_in_use(device)},
                          {"losses_nats", losses},
                          {"loss_nats", loss_nats}}
                         .dump());
  if (weights.empty()) return;
  try {
    write_model(weights, model, tokens);
  } catch (const std::exception& error) {  // the measurement is good without them
    fmt::print(stderr, "{}\n", error.what());
  }
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

std::string describe_case(const json& c) {
  return fmt::format("n = {}, d = {}, {} layers, batch {}{}", c["n_ctx"].get<int64_t>(), c["d_model"].get<int64_t>(),
                     c["n_layers"].get<int64_t>(), c["batch"].get<int64_t>(),
                     c["recompute"].get<bool>() ? ", recompute" : "");
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
                                     "--dtype",
                                     options.dtype,
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
  for (const std::string& name : options.names) {
    cases.push_back(find_case(name));
    if (options.batch > 0) cases.back().batch = options.batch;
  }
  if (!options.json) {
    fmt::print("{}, {}, {}\n", version(), options.device == "cpu" ? cpu_description() : options.device, options.dtype);
    fmt::print("{:<44} {:>8} {:>8} {:>9} {:>9} {:>5} {:>8} {:>8} {:>9}\n", "training step", "tokens/s", "median",
               "best ms", "median", "runs", "resident", "tensors", "elsewhere");
  }
  for (size_t i = 0; i < cases.size(); ++i) {
    const bool rival = options.names[i] == "rival" && options.device == "cpu" && !options.json;
    std::string scratch = fs::temp_directory_path() / "lacuna-rival-XXXXXX";
    if (rival && options.weights.empty()) check(::mkdtemp(scratch.data()) != nullptr, "no folder ", scratch);
    const fs::path folder = rival && options.weights.empty() ? fs::path(scratch) : options.weights;
    const Child child = in_child([&] { measure(options.names[i], cases[i], options, folder); });
    if (options.json) {
      fmt::print("{}\n", child.result.dump());
      std::fflush(stdout);
      continue;
    }
    print_row(options.names[i], child, describe_case(child.result));
    if (!rival) continue;
    measure_pytorch(options, folder, child.result);
    if (options.weights.empty()) fs::remove_all(folder);
  }
  if (!options.json)
    fmt::print("resident: MiB of the whole process at most; tensors: MiB that its tensors held at most\n");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Tokens per second and memory of a training step, beside PyTorch's");
  Options options;
  app.add_option("--seconds", options.seconds, "time for each case")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--runs", options.runs, "at least so many steps")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--warm-up", options.warm_up, "steps before them that are not timed (default: 1, on a GPU 3)")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--python", options.python, "has PyTorch (default: $PYTHON, else python3)");
  app.add_option("--pytorch", options.pytorch, "its ways to run the case rival: products, sdpa, compile")
      ->check(CLI::IsMember({"products", "sdpa", "compile"}))
      ->delimiter(',')
      ->allow_extra_args(false);
  app.add_option("--weights", options.weights, "folder for weights, tokens and logits of the last case, for comparison");
  app.add_option("--device", options.device, "cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--dtype", options.dtype, "of activations")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  app.add_option("--batch", options.batch, "sequences in a step (default: the preset's micro-batch)")
      ->check(CLI::PositiveNumber);
  app.add_option("--recompute", options.recompute, "preset, true, false, or auto: where memory would not do otherwise")
      ->check(CLI::IsMember({"preset", "true", "false", "auto"}))
      ->capture_default_str();
  app.add_option("--text", options.text, "train on the bytes of this file, in order (default: random bytes)");
  app.add_option("--samples", options.samples,
                 "instead of training: so many samples at once, for --seconds at most (with --json)")
      ->check(CLI::PositiveNumber);
  app.add_flag("--json", options.json, "one line of JSON for each case");
  app.add_option("NAME", options.names, "rival, rival-recompute, rival-dense, PROGRAM/PRESET");
  CLI11_PARSE(app, argc, argv);
  try {
    check_usage(options.samples == 0 || options.json, "train_step_benchmark: --samples needs --json");
    run(options);
  } catch (const UsageError& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}

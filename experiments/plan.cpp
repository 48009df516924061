// The command plan: what a configuration costs, before anything of it is allocated.

#include <ctime>

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "core/error.h"
#include "experiments/console.h"
#include "experiments/environment.h"
#include "experiments/experiment.h"
#include "experiments/parse.h"
#include "models/cost.h"
#include "ops/matmul/matmul.h"

namespace lacuna {
namespace {

std::array<int64_t, kMemoryCategories> bytes_of(const ExperimentConfig& config, int64_t batch) {
  return training_bytes(config.model, {.batch = batch, .dtype = config.train.dtype, .ema = config.train.ema_decay > 0});
}

int64_t total(const std::array<int64_t, kMemoryCategories>& bytes) {
  return std::accumulate(bytes.begin(), bytes.end(), int64_t{0});
}

std::string flop(double count) {
  constexpr const char* kUnits[] = {"MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"};
  size_t unit = 0;
  for (count /= 1e6; count >= 1000.0 && unit + 1 < std::size(kUnits); ++unit) count /= 1000.0;
  return fmt::format("{:.2f} {}", count, kUnits[unit]);
}

// Processor time of this thread, which other work on the machine disturbs little.
double thread_seconds() {
  timespec t{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Operations a second of the feed-forward layer's product, of a part of it where it is large, on all threads: what one
// of them reaches at best in 0.2 s, times their number.
template <class T>
double product_rate(const ModelConfig& model) {
  const int64_t rows = std::min<int64_t>(model.n_ctx, 512), d = std::min<int64_t>(model.d_model, 1024),
                d_ff = std::min<int64_t>(model.ff_width(), 1024);
  const std::vector<T> x(static_cast<size_t>(rows * d), T{1}), w(static_cast<size_t>(d_ff * d), T{1});
  std::vector<T> y(static_cast<size_t>(rows * d_ff));
  const int all_threads = threads();
  set_threads(1);
  double best_s = 1e9;
  for (const double start = thread_seconds(); best_s > 1e8 || thread_seconds() - start < 0.2;) {
    const double begin = thread_seconds();
    gemm(false, true, rows, d_ff, d, T{1}, x.data(), d, w.data(), d, T{0}, y.data(), d_ff);
    best_s = std::min(best_s, thread_seconds() - begin);
  }
  set_threads(all_threads);
  return 2.0 * static_cast<double>(rows * d * d_ff) / best_s * all_threads;
}

std::string describe_decode(const ExperimentConfig& config) {
  const DType dtype = accumulation_dtype(config.train.dtype);  // sampling computes in the dtype of the parameters
  std::string out = fmt::format("memory of the sampling cache in {}, per sequence of {}\n", name_of(dtype),
                                format_count(config.model.n_ctx));
  int64_t sum = 0;
  for (const DecodeCost& kind : decode_cost(config.model, dtype)) {
    out += fmt::format("  {:>3} x {:<14} {:>12}  {}\n", kind.layers, kind.layers == 1 ? "layer" : "layers",
                       format_bytes(kind.bytes), kind.pattern);
    sum += kind.bytes;
  }
  const int64_t dense = dense_decode_bytes(config.model, dtype);
  out += fmt::format("  {:<20} {:>12}, {:.1f} % of the {} that keep every position\n", "total", format_bytes(sum),
                     100.0 * static_cast<double>(sum) / static_cast<double>(dense), format_bytes(dense));
  return out;
}

}  // namespace

std::string describe_plan(const ExperimentConfig& config, int64_t batch, int64_t ranks) {
  const ComputeCost cost = compute_cost(config.model);
  const std::array<int64_t, kMemoryCategories> bytes = bytes_of(config, batch);
  const double dense_pairs = 0.5 * static_cast<double>(config.model.n_ctx) *
                             static_cast<double>(config.model.n_ctx + 1) *
                             static_cast<double>(config.model.n_heads * config.model.n_layers);
  std::string out = fmt::format("{} {}: {}\n", config.program, config.preset, to_string(config.model.attention));
  out += fmt::format("  parameters           {}\n", format_count(cost.parameters));
  out += fmt::format("  attention pairs      {} per sequence, {:.1f} % of dense\n", format_count(cost.attention_pairs),
                     100.0 * static_cast<double>(cost.attention_pairs) / dense_pairs);
  out += fmt::format("  forward, matrices    {} per sequence of {}\n", flop(cost.forward_linear),
                     format_count(config.model.n_ctx));
  out += fmt::format("  forward, attention   {}\n", flop(cost.forward_attention));
  out += fmt::format("  training             {} per sequence{}\n", flop(cost.training),
                     config.model.recompute ? ", recomputation included" : "");
  const double step = cost.training * static_cast<double>(config.train.batch);
  const double rate =
      config.train.dtype == DType::f64 ? product_rate<double>(config.model) : product_rate<float>(config.model);
  out += fmt::format("  one step             {} for a batch of {}\n", flop(step), config.train.batch);
  out += fmt::format("  the run              {} for {} steps\n", flop(step * static_cast<double>(config.train.steps)),
                     format_count(config.train.steps));
  const double step_s = step / static_cast<double>(ranks) / rate;
  out += fmt::format("  time of a step       at least {}{}: matrix products alone, {}/s on this CPU\n",
                     step_s < 10.0 ? fmt::format("{:.2g} s", step_s) : format_seconds(step_s),
                     ranks > 1 ? fmt::format(" on {} such", ranks) : "", flop(rate));
  out +=
      fmt::format("memory of a training step in {}, {} {} at a time{}\n", name_of(config.train.dtype), batch,
                  batch == 1 ? "sequence" : "sequences", ranks > 1 ? fmt::format(", on each of {} ranks", ranks) : "");
  for (int i = 0; i < kMemoryCategories; ++i)
    out += fmt::format("  {:<20} {:>12}\n", name_of(static_cast<MemoryCategory>(i)),
                       format_bytes(bytes[static_cast<size_t>(i)]));
  out += fmt::format("  {:<20} {:>12}\n", "total", format_bytes(total(bytes)));
  return out + describe_decode(config);
}

int plan_command(const Experiment& experiment, const Options& options) {
  const ExperimentConfig config = resolve_config(options, experiment.program, experiment.default_preset);
  const int64_t share = (config.train.batch + options.ranks - 1) / options.ranks;  // of the batch, on one rank
  check_usage(options.batch || share * options.ranks == config.train.batch, "--ranks ", options.ranks,
              " must divide the batch of ", config.train.batch, " sequences");
  const int64_t batch =
      options.batch.value_or(config.train.micro_batch > 0 ? std::min(config.train.micro_batch, share) : share);
  Console console;
  console.print(describe_plan(config, batch, options.ranks));
  if (!options.device_memory) return 0;

  const int64_t available = *options.device_memory, needed = total(bytes_of(config, batch));
  if (needed <= available) {
    console.print(fmt::format("fits: {} of {} stay free", format_bytes(available - needed), format_bytes(available)));
    return 0;
  }
  console.print(fmt::format("does not fit: {} more than {} are needed", format_bytes(needed - available),
                            format_bytes(available)));
  if (batch > 1 && total(bytes_of(config, 1)) <= available)
    console.print("one sequence at a time fits: --set train.micro_batch=1");
  else if (!config.model.recompute)
    console.print("--set model.recompute=true needs less");
  return 0;
}

}  // namespace lacuna

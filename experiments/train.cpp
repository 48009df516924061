// The training loop, Sec. 5.6 and 6 of the paper: Adam, linear warm-up and cosine, clipping by global norm, averaged
// weights; the validation split chooses the best checkpoint, the test split is scored once, at the end.

#include <algorithm>
#include <chrono>
#include <iostream>
#include <memory>
#include <numbers>
#include <numeric>
#include <optional>

#include <fmt/format.h>

#include "core/error.h"
#include "core/file.h"
#include "data/compressors.h"
#include "experiments/console.h"
#include "experiments/dense_rival.h"
#include "experiments/environment.h"
#include "experiments/evaluate.h"
#include "experiments/experiment.h"
#include "experiments/metrics.h"
#include "experiments/parse.h"
#include "experiments/run_directory.h"
#include "experiments/samples.h"
#include "experiments/signals.h"
#include "experiments/training_steps.h"
#include "models/cost.h"
#include "models/sampler.h"
#include "optim/schedule.h"

namespace lacuna {
namespace fs = std::filesystem;
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kAlgorithms = "matmul-algorithms.txt";  // in a run folder: see product_algorithms()

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

double bits(double nats) { return nats / std::numbers::ln2; }

// While alive, the parameters are their averages.
class AveragedWeights {
 public:
  explicit AveragedWeights(const Ema* ema) : ema_(ema) {
    if (ema_) ema_->swap();
  }
  ~AveragedWeights() {
    if (ema_) ema_->swap();
  }
  AveragedWeights(const AveragedWeights&) = delete;
  AveragedWeights& operator=(const AveragedWeights&) = delete;

 private:
  const Ema* ema_;
};

// Throws Error, before anything is read or written, when --device names something that cannot train this.
Device usable_device(const Options& options, const ExperimentConfig& config) {
  const TrainConfig& train = config.train;
  const Device device = choose_device(options.device, {config.model, train.dtype, /*training=*/true});
  if (device == kCpu) return device;
  const auto bytes = training_bytes(config.model, {.batch = train.micro_batch > 0 ? train.micro_batch : train.batch,
                                                   .dtype = train.dtype,
                                                   .ema = train.ema_decay > 0});
  const int64_t needed = std::accumulate(bytes.begin(), bytes.end(), int64_t{0});
  const gpu::DeviceProperties& p = gpu::properties(device);
  const int64_t free = gpu::free_bytes(device);
  check(needed <= free, "--device ", options.device, ": a training step needs ", format_bytes(needed), ", ", p.name,
        " has ", format_bytes(p.memory_bytes), ", of which ", format_bytes(free),
        " are free; lower train.micro_batch, or the model's n_layers, d_model or n_ctx");
  return device;
}

class Trainer {
 public:
  Trainer(const Experiment& experiment, const Options& options, const ExperimentConfig& config, Device device,
          const Dataset& data, RunDirectory& folder, Console& console)
      : experiment_(experiment),
        options_(options),
        config_(config),
        train_(config_.train),
        data_(data),
        folder_(folder),
        console_(console),
        device_(device),
        steps_(config_, data, device_, [this](const std::string& line) { console_.print(line); }) {
    state_.config = config_;
    state_.data_fingerprint = data.fingerprint();
    state_.threads = threads();
  }

  /// The whole run, from wherever an earlier process left it.
  void run() {
    resume_or_start();
    if (state_.step < train_.steps) compare_with_dense();
    const int64_t first_step = state_.step;
    const Clock::time_point begin = Clock::now();
    try {
      while (true) {
        const bool due = state_.step % train_.checkpoint_every == 0 || state_.step == train_.steps || stop_requested();
        if (due || evaluation_due()) write_metrics(/*left=*/0);  // so that nothing is done with weights gone bad
        const bool improved = evaluation_due() && validate();
        if (state_.step > 0 && (improved || (due && saved_step_ != state_.step))) save();
        if (stop_requested()) throw Stopped();
        if (state_.step >= train_.steps) break;
        step();
        const double mean_step_s = seconds_since(begin) / static_cast<double>(state_.step - first_step);
        if (numbers_known_)
          console_.progress("step", state_.step, train_.steps,
                            fmt::format("{:.4f} {}  {:.0f} tokens/s  {} left", bits(loss_nats_), unit(), tokens_per_s_,
                                        format_seconds(mean_step_s * static_cast<double>(train_.steps - state_.step))));
      }
      finish();
    } catch (const Stopped&) {
      write_metrics(/*left=*/0);
      if (state_.step > 0 && saved_step_ != state_.step) save();
      console_.print(concat("stopped by a signal after step ", state_.step, " of ", train_.steps,
                            "; the same command goes on from there:\n  ", quote_command(options_.arguments)));
    }
  }

  int64_t step_done() const { return written_step_; }

 private:
  const char* unit() const { return experiment_.medium == Medium::text ? "bits per byte" : "bits per dim"; }
  const SparseTransformer& model() const { return steps_.model(); }
  const Ema* average() const { return steps_.average(); }
  const char* weights_name() const { return average() ? "ema" : "last"; }

  // --- Start and resume

  void resume_or_start() {
    fs::path checkpoint;
    RunState saved;
    if (options_.resume == "none") {
      const fs::path previous = folder_.set_aside_previous_run();
      if (!previous.empty()) console_.print("the earlier run is kept in " + previous.string());
    } else if (options_.resume == "auto") {
      FoundCheckpoint found = newest_good_checkpoint(folder_.checkpoints());
      for (const std::string& reason : found.rejected) console_.print("passed over: " + reason);
      check(!found.path.empty() || found.rejected.empty(), folder_.path().string(),
            ": none of its checkpoints can be used (", found.rejected.empty() ? "" : found.rejected.front(),
            "); --resume none starts over and keeps them aside");
      checkpoint = found.path;
      saved = std::move(found.state);
    } else {
      checkpoint = options_.resume;
      saved = verify_checkpoint(checkpoint);
      const bool own = fs::exists(folder_.checkpoints() / checkpoint.filename()) &&
                       fs::equivalent(folder_.checkpoints() / checkpoint.filename(), checkpoint);
      check_usage(own || list_checkpoints(folder_.checkpoints()).empty(), "--resume ", checkpoint.string(), ": ",
                  folder_.path().string(), " holds a run of its own; give another --out");
    }
    if (!checkpoint.empty()) {
      check_compatible(checkpoint, saved);
      load_checkpoint(checkpoint, saved, steps_.tensors());
      steps_.resume(saved);
      state_.step = written_step_ = saved.step;
      state_.best_step = saved.best_step;
      state_.best_bits_per_dim = saved.best_bits_per_dim;
      if (options_.resume != "auto") {
        const fs::path previous = folder_.set_aside_checkpoints_after(state_.step);
        if (!previous.empty()) console_.print("newer checkpoints are kept in " + previous.string());
      }
      if (fs::exists(folder_.checkpoints() / checkpoint_name(state_.step))) saved_step_ = state_.step;
    }
    if (!checkpoint.empty()) take_over_algorithms_of(fs::canonical(checkpoint).parent_path().parent_path());
    write_records();
    metrics_ = std::make_unique<MetricsFile>(folder_.metrics(), state_.step);
    console_.log_to(folder_.log());
    announce(checkpoint, saved);
  }

  // Those with which a run multiplied matrices, which may be another one than this.
  void take_over_algorithms_of(const fs::path& run) {
    if (!fs::exists(run / kAlgorithms)) return;
    const std::string problem = take_over_product_algorithms(device_, read_file(run / kAlgorithms));
    if (!problem.empty()) console_.print("note: " + problem);
  }

  void check_compatible(const fs::path& checkpoint, const RunState& saved) const {
    const std::string remedy = "\ngive the same flags, another --out, or --resume none to start over";
    check_usage(saved.config.program == config_.program, checkpoint.string(), ": is of the program ",
                saved.config.program, ", not ", config_.program);
    std::string lines;
    for (const std::string& line : refused_differences(saved.config, config_)) lines += "\n  " + line;
    check_usage(lines.empty(), checkpoint.string(), ": cannot go on with another configuration:", lines, remedy);
    check_usage(saved.data_fingerprint == state_.data_fingerprint, checkpoint.string(),
                ": cannot go on with other data: it was trained on ", saved.data_fingerprint, ", now given ",
                state_.data_fingerprint, remedy);
    check_usage(saved.step <= train_.steps, checkpoint.string(), ": has ", saved.step,
                " steps behind it, more than --steps ", train_.steps, remedy);
  }

  void write_records() const {
    write_file(folder_.config(), to_toml(config_));
    const std::string earlier =
        state_.step > 0 && fs::exists(folder_.command()) ? read_file(folder_.command()) + "\n" : "";
    write_file(folder_.command(),
               concat(earlier, quote_command(options_.arguments), "\nversion  ", version(), "\nhost     ", host_name(),
                      "\ndevice   ", describe(device_), "\nstarted  ", time_now(), " at step ", state_.step, "\n"));
  }

  void announce(const fs::path& checkpoint, const RunState& saved) {
    const bool refused = options_.device == "auto" && device_ == kCpu;  // when there may be a GPU that should be used
    console_.print(
        concat(version(), " on ", host_name(), "; ", describe(device_),
               refused ? concat(" (no GPU: ", why_no_gpu({config_.model, train_.dtype, /*training=*/true}), ")") : ""));
    if (const std::string why = why_slow_on(device_, {config_.model, train_.dtype, /*training=*/true}); !why.empty())
      console_.print("note: " + why);
    console_.print("data: " + data_.description());
    console_.print(to_toml(config_));
    console_.print(
        concat(format_count(model().parameters().count()), " parameters; run folder ", folder_.path().string()));
    if (checkpoint.empty()) return;
    for (const std::string& line : accepted_differences(saved.config, config_)) console_.print("from here on " + line);
    if (saved.threads != threads())
      console_.print(concat("note: saved with ", saved.threads, " threads, now ", threads(),
                            "; matrix products may differ in their last bit"));
    console_.print(concat(state_.step == train_.steps ? "this run is finished: " : "resumed from ", checkpoint.string(),
                          " (step ", state_.step, " of ", train_.steps, ")"));
  }

  // Warns when dense attention would be the faster one. Only on the CPU.
  void compare_with_dense() {
    if (device_ != kCpu) return;
    const auto slower = slower_than_dense(config_.model, time_attention_of(config_.model, train_.dtype));
    Allocator::of(kCpu).release_cached();
    Allocator::of(kCpu).reset_peak();
    slower_than_dense_ = slower.has_value();
    if (slower)
      console_.print(fmt::format(
          "warning: at n_ctx = {} this attention is slower than dense: {:.3g} ms against {:.3g} ms a layer and "
          "sequence, forward and backward (docs/crossover.md)",
          config_.model.n_ctx, 1e3 * slower->pattern_s, 1e3 * slower->dense_s));
  }

  // --- One step

  void step() {
    if (steps_.unfinished() == 0) last_metrics_ = Clock::now();
    steps_.begin();
    ++state_.step;
    // The next step depends on whether f16 overflowed in this one; otherwise a GPU goes on while the host catches up.
    write_metrics(/*left=*/device_ == kCpu || train_.dtype == DType::f16 ? 0 : 1);
  }

  // Writes the metrics of finished steps, and waits for them, until those of `left` steps are not written.
  void write_metrics(int64_t left) {
    while (const std::optional<StepReport> report = steps_.finish(left)) {
      written_step_ = report->step;
      const double elapsed_s = seconds_since(last_metrics_);
      last_metrics_ = Clock::now();
      const int64_t tokens_per_step = train_.batch * config_.model.n_ctx;
      tokens_per_s_ = static_cast<double>(tokens_per_step) / elapsed_s;
      loss_nats_ = report->loss_nats;
      numbers_known_ = true;
      metrics_->write(StepMetrics{.step = report->step,
                                  .samples = report->step * train_.batch,
                                  .tokens = report->step * tokens_per_step,
                                  .loss_nats = report->loss_nats,
                                  .lr = learning_rate({train_.lr, train_.warmup_steps, train_.steps}, report->step - 1),
                                  .grad_norm = report->grad_norm,
                                  .loss_scale = report->loss_scale,
                                  .step_ms = 1000.0 * elapsed_s,
                                  .tokens_per_s = tokens_per_s_,
                                  .memory_bytes = Allocator::of(device_).stats().total_peak,
                                  .slower_than_dense = slower_than_dense_});
    }
  }

  // --- Evaluation, checkpoints

  bool evaluation_due() const {
    return state_.step > 0 && (state_.step % train_.eval_every == 0 || state_.step == train_.steps) &&
           !metrics_->find("valid", weights_name(), state_.step);
  }

  EvalMetrics score(Split split, int64_t windows, const Ema* ema) {
    const AveragedWeights averaged(ema);
    const std::string what = concat("evaluating ", name_of(split));
    const Evaluation result = evaluate(
        model(), data_,
        {.split = split, .windows = windows, .min_context = std::nullopt, .progress = [&](int64_t done, int64_t total) {
           if (stop_requested()) throw Stopped();
           if (console_.is_terminal()) console_.progress(what, done, total, "");
         }});
    const EvalMetrics metrics{state_.step, std::string(name_of(split)), ema ? "ema" : "last", result.bits_per_dim,
                              result.n};
    metrics_->write(metrics);
    return metrics;
  }

  // Scores the validation split; whether it is the best so far.
  bool validate() {
    const EvalMetrics metrics = score(Split::valid, train_.eval_windows, average());
    const bool best = state_.best_step == 0 || metrics.bits_per_dim < state_.best_bits_per_dim;
    if (best) {
      state_.best_step = state_.step;
      state_.best_bits_per_dim = metrics.bits_per_dim;
    }
    console_.print(fmt::format("step {}: valid {:.4f} {}{}", state_.step, metrics.bits_per_dim, unit(),
                               best ? ", the best so far" : ""));
    return best;
  }

  void save() {
    steps_.save_to(state_);
    save_checkpoint(folder_.checkpoints(), state_, steps_.tensors());
    const std::string algorithms = product_algorithms(device_);
    if (!algorithms.empty()) write_file(folder_.path() / kAlgorithms, algorithms);
    saved_step_ = state_.step;
    prune_checkpoints(folder_.checkpoints(), train_.keep, state_.best_step);
  }

  // --- The end

  void finish() {
    const EvalMetrics test = test_score(average());
    console_.print(
        fmt::format("test: {:.4f} {} over {} {}{}{}", test.bits_per_dim, unit(), format_count(test.n),
                    experiment_.medium == Medium::text ? "bytes" : "dims", average() ? ", averaged weights" : "",
                    train_.test_windows > 0 ? fmt::format(" (the first {} sequences)", train_.test_windows) : ""));
    if (average())
      console_.print(fmt::format("test: {:.4f} {} with the last weights", test_score(nullptr).bits_per_dim, unit()));
    if (experiment_.medium == Medium::text) compare_with_compressors(test);
    draw_samples();
    const fs::path checkpoints = folder_.checkpoints();
    console_.print(concat("run          ", folder_.path().string(), "\nmetrics      ", folder_.metrics().string(),
                          "\ncheckpoint   ", (checkpoints / checkpoint_name(state_.step)).string(),
                          state_.best_step == state_.step ? " (the best on valid)" : ""));
    if (state_.best_step != state_.step && state_.best_step > 0)
      console_.print(fmt::format("best         {} ({:.4f} {} on valid)",
                                 (checkpoints / checkpoint_name(state_.best_step)).string(), state_.best_bits_per_dim,
                                 unit()));
    console_.print(concat("draw more    ",
                          quote_command({options_.arguments[0], "sample", "--checkpoint", folder_.path().string()})));
  }

  EvalMetrics test_score(const Ema* ema) {
    const auto known = metrics_->find("test", ema ? "ema" : "last", state_.step);
    return known ? *known : score(Split::test, train_.test_windows, ema);
  }

  // What general compressors make of the very bytes that were scored.
  void compare_with_compressors(const EvalMetrics& test) {
    const std::string_view bytes = data_.bytes(Split::test).substr(0, static_cast<size_t>(test.n));
    console_.print(fmt::format("the same {} bytes: gzip -9 {:.4f}, bzip2 -9 {:.4f}, this model {:.4f} bits per byte",
                               format_count(test.n), gzip_bits_per_byte(bytes), bzip2_bits_per_byte(bytes),
                               test.bits_per_dim));
  }

  void draw_samples() {
    if (train_.sample_count == 0) return;
    const fs::path path = folder_.samples() / (checkpoint_name(state_.step) + sample_extension(experiment_.medium));
    if (!fs::exists(path)) {
      const int64_t n_ctx = config_.model.n_ctx;
      const int64_t length = train_.sample_length > 0 ? std::min(train_.sample_length, n_ctx) : n_ctx;
      const AveragedWeights averaged(average());
      const Tensor tokens = sample(
          model(),
          {.count = train_.sample_count, .length = length, .temperature = train_.temperature, .seed = train_.seed}, {},
          [&](int64_t done) {
            if (stop_requested()) throw Stopped();
            if (console_.is_terminal()) console_.progress("sampling", done, length, "");
          },
          [&](const std::string& line) { console_.print(line); });
      write_samples(path, tokens, experiment_.medium);
      if (experiment_.medium == Medium::text)
        console_.print("a sample:\n" + printable({reinterpret_cast<const char*>(tokens.data<uint8_t>()),
                                                  static_cast<size_t>(std::min<int64_t>(length, 400))}));
    }
    console_.print("samples      " + path.string());
  }

  const Experiment& experiment_;
  const Options& options_;
  const ExperimentConfig config_;
  const TrainConfig& train_;
  const Dataset& data_;
  RunDirectory& folder_;
  Console& console_;
  const Device device_;
  TrainingSteps steps_;
  std::unique_ptr<MetricsFile> metrics_;
  RunState state_;
  bool slower_than_dense_ = false;
  int64_t saved_step_ = -1;   // of a checkpoint on disk that has this state
  int64_t written_step_ = 0;  // the newest whose metrics are written
  Clock::time_point last_metrics_;
  bool numbers_known_ = false;  // those below, of the newest step whose metrics are written
  double loss_nats_ = 0.0, tokens_per_s_ = 0.0;
};

}  // namespace

int train_command(const Experiment& experiment, const Options& options) {
  ExperimentConfig config = resolve_config(options, experiment.program, experiment.default_preset);
  if (options.print_config) {
    std::cout << to_toml(config) << std::flush;
    return 0;
  }
  const Device device = options.dry_run ? kCpu : usable_device(options, config);
  handle_stop_signals();
  Console console;
  const bool default_data = config.data_path.empty();
  const std::unique_ptr<Dataset> data = open_dataset(experiment, config);
  if (default_data)
    console.print("no --data given: learning from the sample shipped with the source, " + config.data_path);
  if (options.dry_run) {
    const int64_t batch = config.train.micro_batch > 0 ? config.train.micro_batch : config.train.batch;
    console.print(concat("data: ", data->description(), "\n", to_toml(config), "\n", describe_plan(config, batch, 1),
                         "dry run: nothing was written"));
    return 0;
  }
  RunDirectory folder(options.out.empty() ? default_run_folder(config) : options.out);
  int64_t step = 0;
  try {
    Trainer trainer(experiment, options, config, device, *data, folder, console);
    try {
      trainer.run();
    } catch (...) {
      step = trainer.step_done();
      throw;
    }
  } catch (const std::exception& error) {
    console.end_progress();
    folder.record_failure(step, error.what());
    throw;
  }
  return 0;
}

}  // namespace lacuna

// The training loop, Sec. 5.6 and 6 of the paper: Adam, linear warm-up and cosine, clipping by global norm, averaged
// weights; the validation split chooses the best checkpoint, the test split is scored once, at the end.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>
#include <memory>
#include <numbers>
#include <numeric>

#include <fmt/format.h>

#include "core/error.h"
#include "core/file.h"
#include "data/compressors.h"
#include "experiments/console.h"
#include "experiments/dense_rival.h"
#include "experiments/device_step.h"
#include "experiments/environment.h"
#include "experiments/evaluate.h"
#include "experiments/experiment.h"
#include "experiments/metrics.h"
#include "experiments/parse.h"
#include "experiments/run_directory.h"
#include "experiments/samples.h"
#include "experiments/signals.h"
#include "models/cost.h"
#include "models/sampler.h"
#include "ops/tokens.h"
#include "optim/clip.h"
#include "optim/schedule.h"

namespace lacuna {
namespace fs = std::filesystem;
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

double bits(double nats) { return nats / std::numbers::ln2; }

AdamConfig adam_config(const TrainConfig& c) {
  return {.beta1 = static_cast<float>(c.beta1),
          .beta2 = static_cast<float>(c.beta2),
          .eps = static_cast<float>(c.eps),
          .weight_decay = static_cast<float>(c.weight_decay)};
}

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

// Throws Error, before anything is allocated, when --device names something that cannot train this.
Device usable_device(const Options& options, const ExperimentConfig& config) {
  const Device device = choose_device(options.device, config.train.dtype);
  if (device == kCpu) return device;
  const TrainConfig& train = config.train;
  const auto bytes = training_bytes(config.model, {.batch = train.micro_batch > 0 ? train.micro_batch : train.batch,
                                                   .dtype = train.dtype,
                                                   .ema = train.ema_decay > 0});
  const int64_t needed = std::accumulate(bytes.begin(), bytes.end(), int64_t{0});
  const gpu::DeviceProperties& p = gpu::properties(device);
  check(needed <= p.memory_bytes, "--device ", options.device, ": a training step needs ", format_bytes(needed), ", ",
        p.name, " has ", format_bytes(p.memory_bytes),
        "; lower train.micro_batch, or the model's n_layers, d_model or n_ctx");
  return device;
}

class Trainer {
 public:
  Trainer(const Experiment& experiment, const Options& options, const ExperimentConfig& config, const Dataset& data,
          RunDirectory& folder, Console& console)
      : experiment_(experiment),
        options_(options),
        config_(config),
        train_(config_.train),
        data_(data),
        folder_(folder),
        console_(console),
        device_(usable_device(options, config)),
        model_(config.model, config.train.seed, config.train.dtype, device_),
        adam_(model_.parameters(), adam_config(train_)),
        batches_(device_, [this](int64_t step) { return read_batch(step); }),
        runner_(device_, [this](const std::string& line) { console_.print(line); }),
        numbers_(device_),
        scaler_(/*dynamic=*/train_.dtype == DType::f16) {
    if (train_.ema_decay > 0) ema_ = std::make_unique<Ema>(model_.parameters(), train_.ema_decay);
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
  const char* weights_name() const { return ema_ ? "ema" : "last"; }
  fs::path algorithms_file() const { return folder_.path() / "matmul-algorithms.txt"; }
  RunTensors tensors() { return {model_, adam_, ema_.get()}; }

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
      load_checkpoint(checkpoint, saved, tensors());
      state_.step = written_step_ = saved.step;
      state_.best_step = saved.best_step;
      state_.best_bits_per_dim = saved.best_bits_per_dim;
      state_.updates = saved.updates;
      scaler_.set_state(saved.loss_scaler);
      if (options_.resume != "auto") {
        const fs::path previous = folder_.set_aside_checkpoints_after(state_.step);
        if (!previous.empty()) console_.print("newer checkpoints are kept in " + previous.string());
      }
      if (fs::exists(folder_.checkpoints() / checkpoint_name(state_.step))) saved_step_ = state_.step;
    }
    if (!checkpoint.empty() && fs::exists(algorithms_file())) {
      const std::string problem = take_over_product_algorithms(device_, read_file(algorithms_file()));
      if (!problem.empty()) console_.print("note: " + problem);
    }
    write_records();
    metrics_ = std::make_unique<MetricsFile>(folder_.metrics(), state_.step);
    console_.log_to(folder_.log());
    announce(checkpoint, saved);
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
    console_.print(concat(version(), " on ", host_name(), "; ", describe(device_)));
    console_.print("data: " + data_.description());
    console_.print(to_toml(config_));
    console_.print(
        concat(format_count(model_.parameters().count()), " parameters; run folder ", folder_.path().string()));
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

  Tensor read_batch(int64_t step) const {
    const Tensor tokens = data_.train_batch(train_.seed, std::min(step, train_.steps - 1), train_.batch);
    check_tokens("train", "tokens", tokens, config_.model.n_vocab);
    return tokens;
  }

  void step() {
    if (numbers_.size() == 0) last_metrics_ = Clock::now();
    const Tensor tokens = batches_.get(state_.step);
    const int64_t adam_steps = adam_.steps(), ema_updates = ema_ ? ema_->updates() : 0;
    runner_.run([&] { enqueue_step(tokens); },
                [&] {
                  adam_.set_steps(adam_steps);
                  if (ema_) ema_->set_updates(ema_updates);
                });
    ++state_.step;
    numbers_.push(report_);
    batches_.prefetch_next();
    // The next step depends on whether f16 overflowed in this one; otherwise a GPU goes on while the host catches up.
    write_metrics(/*left=*/device_ == kCpu || train_.dtype == DType::f16 ? 0 : 1);
  }

  // Everything that a device does in a step. report_ gets the loss of each micro-batch and the sum of squares of the
  // gradient, from which Adam clips; when that is not finite Adam changes nothing, and write_metrics() skips the step
  // or ends the run.
  void enqueue_step(const Tensor& tokens) {
    const Parameters& parameters = model_.parameters();
    const int64_t micro = micro_batch(), n_micro = (train_.batch + micro - 1) / micro;
    report_ = empty({n_micro + 1}, DType::f64, device_);
    parameters.clear_gradients();
    for (int64_t i = 0; i < n_micro; ++i) {
      const int64_t first = i * micro, end = std::min(train_.batch, first + micro);
      const Run run{.training = true, .seed = train_.seed, .step = state_.step, .first_sample = first};
      const Variable loss = model_.loss(tokens.slice(first, end), run);
      copy(loss.value(), report_.view(i, {}));
      backward(loss, full({}, loss.dtype(), scaler_.scale() * share(i), device_));
    }
    const Tensor squares = gradient_sum_of_squares(parameters);
    copy(squares, report_.view(n_micro, {1}));
    adam_.step({.lr = learning_rate({train_.lr, train_.warmup_steps, train_.steps}, state_.step),
                .scale = 1.0 / scaler_.scale(),
                .sum_of_squares = squares,
                .max_norm = train_.clip_norm,
                .ema = ema_.get()});
  }

  int64_t micro_batch() const { return train_.micro_batch > 0 ? train_.micro_batch : train_.batch; }

  // The part of a step's samples that micro-batch i has.
  double share(int64_t i) const {
    return static_cast<double>(std::min(micro_batch(), train_.batch - i * micro_batch())) /
           static_cast<double>(train_.batch);
  }

  // Writes the metrics of finished steps, and waits for them, until those of `left` steps are not written.
  void write_metrics(int64_t left) {
    while (numbers_.size() > left) {
      const int64_t step = state_.step - numbers_.size() + 1;
      const std::vector<double> numbers = *numbers_.pop();
      double loss_nats = 0.0;
      for (size_t i = 0; i + 1 < numbers.size(); ++i) {
        check(std::isfinite(numbers[i]), "train: step ", step, ": the loss is ", numbers[i],
              first_non_finite("weight", model_.parameters().values()));
        loss_nats += share(static_cast<int64_t>(i)) * numbers[i];
      }
      const double scale = scaler_.scale(), norm = std::sqrt(numbers.back()) / scale;
      if (update_scaler(step, norm)) {
        ++state_.updates;
      } else {  // Adam has skipped it; so do the counts
        adam_.set_steps(state_.updates);
        if (ema_) ema_->set_updates(state_.updates);
      }
      written_step_ = step;
      const double elapsed_s = seconds_since(last_metrics_);
      last_metrics_ = Clock::now();
      const int64_t tokens_per_step = train_.batch * config_.model.n_ctx;
      tokens_per_s_ = static_cast<double>(tokens_per_step) / elapsed_s;
      loss_nats_ = loss_nats;
      numbers_known_ = true;
      metrics_->write(StepMetrics{.step = step,
                                  .samples = step * train_.batch,
                                  .tokens = step * tokens_per_step,
                                  .loss_nats = loss_nats,
                                  .lr = learning_rate({train_.lr, train_.warmup_steps, train_.steps}, step - 1),
                                  .grad_norm = norm,
                                  .loss_scale = scale,
                                  .step_ms = 1000.0 * elapsed_s,
                                  .tokens_per_s = tokens_per_s_,
                                  .memory_bytes = Allocator::of(device_).stats().total_peak,
                                  .slower_than_dense = slower_than_dense_});
    }
  }

  // Whether the step is taken; loss scaling skips those whose gradient overflowed.
  bool update_scaler(int64_t step, double norm) {
    try {
      return scaler_.update(norm);
    } catch (const Error& error) {
      fail("train: step ", step, ": ", error.what(), first_non_finite("gradient of", model_.parameters().gradients()));
    }
  }

  // ", first in <what> <name> (3 of 4096 elements)", for a message; empty when all are finite.
  std::string first_non_finite(const char* what, const Tensor& flat) const {
    for (const Parameters::Entry& entry : model_.parameters().entries()) {
      const Tensor t = to_device(to_dtype(flat.view(entry.offset, entry.shape), DType::f64), kCpu);
      const double* x = t.data<double>();
      const auto bad = std::count_if(x, x + t.numel(), [](double v) { return !std::isfinite(v); });
      if (bad > 0) return concat("; first in ", what, " ", entry.name, " (", bad, " of ", t.numel(), " elements)");
    }
    return "";
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
        model_, data_,
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
    const EvalMetrics metrics = score(Split::valid, train_.eval_windows, ema_.get());
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
    state_.loss_scaler = scaler_.state();
    save_checkpoint(folder_.checkpoints(), state_, tensors());
    const std::string algorithms = product_algorithms(device_);
    if (!algorithms.empty()) write_file(algorithms_file(), algorithms);
    saved_step_ = state_.step;
    prune_checkpoints(folder_.checkpoints(), train_.keep, state_.best_step);
  }

  // --- The end

  void finish() {
    const EvalMetrics test = test_score(ema_.get());
    console_.print(
        fmt::format("test: {:.4f} {} over {} {}{}{}", test.bits_per_dim, unit(), format_count(test.n),
                    experiment_.medium == Medium::text ? "bytes" : "dims", ema_ ? ", averaged weights" : "",
                    train_.test_windows > 0 ? fmt::format(" (the first {} sequences)", train_.test_windows) : ""));
    if (ema_)
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
      const AveragedWeights averaged(ema_.get());
      const Tensor tokens = sample(
          model_,
          {.count = train_.sample_count, .length = length, .temperature = train_.temperature, .seed = train_.seed}, {},
          [&](int64_t done) {
            if (stop_requested()) throw Stopped();
            if (console_.is_terminal()) console_.progress("sampling", done, length, "");
          });
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
  SparseTransformer model_;
  Adam adam_;
  BatchQueue batches_;
  StepRunner runner_;
  NumberQueue numbers_;
  Tensor report_;  // of the newest step, on the device
  LossScaler scaler_;
  std::unique_ptr<Ema> ema_;
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
    Trainer trainer(experiment, options, config, *data, folder, console);
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

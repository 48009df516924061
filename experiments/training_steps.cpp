#include "experiments/training_steps.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/error.h"
#include "ops/tokens.h"
#include "optim/clip.h"
#include "optim/schedule.h"

namespace lacuna {
namespace {

AdamConfig adam_config(const TrainConfig& c) {
  return {.beta1 = static_cast<float>(c.beta1),
          .beta2 = static_cast<float>(c.beta2),
          .eps = static_cast<float>(c.eps),
          .weight_decay = static_cast<float>(c.weight_decay)};
}

}  // namespace

TrainingSteps::TrainingSteps(const ExperimentConfig& config, const Dataset& data, Device device,
                             std::function<void(const std::string&)> say)
    : config_(config),
      train_(config.train),
      data_(data),
      device_(device),
      model_(config.model, config.train.seed, config.train.dtype, device),
      adam_(model_.parameters(), adam_config(train_)),
      ema_(train_.ema_decay > 0 ? std::make_unique<Ema>(model_.parameters(), train_.ema_decay) : nullptr),
      scaler_(/*dynamic=*/train_.dtype == DType::f16),
      batches_(device, [this](int64_t step) { return read_batch(step); }),
      runner_(device, StepRunner::Recording::every_step, std::move(say)),
      numbers_(device) {}

void TrainingSteps::resume(const RunState& saved) {
  begun_ = saved.step;
  updates_ = saved.updates;
  scaler_.set_state(saved.loss_scaler);
}

void TrainingSteps::save_to(RunState& state) const {
  state.step = begun_;
  state.updates = updates_;
  state.loss_scaler = scaler_.state();
}

Tensor TrainingSteps::read_batch(int64_t step) const {
  const Tensor tokens = data_.train_batch(train_.seed, std::min(step, train_.steps - 1), train_.batch);
  check_tokens("train", "tokens", tokens, config_.model.n_vocab);
  return tokens;
}

// Everything that a device does in a step. When the gradient is not finite Adam changes nothing, and finish() skips the
// step or ends the run. Many micro-batches are a graph each: the host would need longer to record one of all their
// kernels, hundreds of thousands, than a GPU to run them.
void TrainingSteps::begin() {
  const Tensor tokens = batches_.get(begun_);
  const int64_t adam_steps = adam_.steps(), ema_updates = ema_ ? ema_->updates() : 0;
  const auto undo_update = [&] {
    adam_.set_steps(adam_steps);
    if (ema_) ema_->set_updates(ema_updates);
  };
  const int64_t n_micro = (train_.batch + micro_batch() - 1) / micro_batch();
  report_ = empty({n_micro + 1}, DType::f64, device_);
  model_.parameters().clear_gradients();
  if (n_micro == 1) {
    runner_.run(
        [&] {
          enqueue_micro_batch(tokens, 0);
          enqueue_update();
        },
        undo_update);
  } else {
    for (int64_t i = 0; i < n_micro; ++i) runner_.run([&] { enqueue_micro_batch(tokens, i); }, [] {}, /*part=*/0);
    runner_.run([&] { enqueue_update(); }, undo_update, /*part=*/1);
  }
  ++begun_;
  numbers_.push(report_);
  batches_.prefetch_next();
}

// The loss of micro-batch i of a batch, and its gradient.
void TrainingSteps::enqueue_micro_batch(const Tensor& tokens, int64_t i) {
  const int64_t first = i * micro_batch(), end = std::min(train_.batch, first + micro_batch());
  const Run run{.training = true, .seed = train_.seed, .step = begun_, .first_sample = first};
  const Variable loss = model_.loss(tokens.slice(first, end), run);
  copy(loss.value(), report_.view(i, {}));
  backward(loss, full({}, loss.dtype(), scaler_.scale() * share(i), device_));
}

void TrainingSteps::enqueue_update() {
  const Tensor squares = gradient_sum_of_squares(model_.parameters());
  copy(squares, report_.view(report_.numel() - 1, {1}));
  adam_.step({.lr = learning_rate({train_.lr, train_.warmup_steps, train_.steps}, begun_),
              .scale = 1.0 / scaler_.scale(),
              .sum_of_squares = squares,
              .max_norm = train_.clip_norm,
              .ema = ema_.get()});
}

int64_t TrainingSteps::micro_batch() const { return train_.micro_batch > 0 ? train_.micro_batch : train_.batch; }

// The part of a step's samples that micro-batch i has.
double TrainingSteps::share(int64_t i) const {
  return static_cast<double>(std::min(micro_batch(), train_.batch - i * micro_batch())) /
         static_cast<double>(train_.batch);
}

std::optional<StepReport> TrainingSteps::finish(int64_t left) {
  if (unfinished() <= left) return {};
  StepReport report{
      .step = begun_ - unfinished() + 1, .loss_nats = 0.0, .grad_norm = 0.0, .loss_scale = scaler_.scale()};
  const std::vector<double> numbers = *numbers_.pop();
  for (size_t i = 0; i + 1 < numbers.size(); ++i) {
    check(std::isfinite(numbers[i]), "train: step ", report.step, ": the loss is ", numbers[i],
          first_non_finite("weight", model_.parameters().values()));
    report.loss_nats += share(static_cast<int64_t>(i)) * numbers[i];
  }
  report.grad_norm = std::sqrt(numbers.back()) / report.loss_scale;
  if (update_scaler(report.step, report.grad_norm)) {
    ++updates_;
  } else {  // Adam has skipped it; so do the counts
    adam_.set_steps(updates_);
    if (ema_) ema_->set_updates(updates_);
  }
  return report;
}

// Whether the step is taken; loss scaling skips those whose gradient overflowed.
bool TrainingSteps::update_scaler(int64_t step, double norm) {
  try {
    return scaler_.update(norm);
  } catch (const Error& error) {
    fail("train: step ", step, ": ", error.what(), first_non_finite("gradient of", model_.parameters().gradients()));
  }
}

// ", first in <what> <name> (3 of 4096 elements)", for a message; empty when all are finite.
std::string TrainingSteps::first_non_finite(const char* what, const Tensor& flat) const {
  for (const Parameters::Entry& entry : model_.parameters().entries()) {
    const Tensor t = to_device(to_dtype(flat.view(entry.offset, entry.shape), DType::f64), kCpu);
    const double* x = t.data<double>();
    const auto bad = std::count_if(x, x + t.numel(), [](double v) { return !std::isfinite(v); });
    if (bad > 0) return concat("; first in ", what, " ", entry.name, " (", bad, " of ", t.numel(), " elements)");
  }
  return "";
}

}  // namespace lacuna

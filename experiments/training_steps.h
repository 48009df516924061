#pragma once
// The optimizer steps of a run, Sec. 5.6 of the paper: loss of a batch, gradient, clipping by global norm, Adam,
// average.

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "data/dataset.h"
#include "experiments/device_step.h"
#include "experiments/run_state.h"

namespace lacuna {

/// What a finished step reports.
struct StepReport {
  int64_t step;      // the first is 1
  double loss_nats;  // mean over the tokens of the batch
  double grad_norm;  // of the whole gradient, before clipping
  double loss_scale;
};

/// Model, optimizer and average, and the steps that change them. A step is a function of (config, data, step) and of
/// what the steps before it left.
class TrainingSteps {
 public:
  /// `say` gets notes for the user. `config` and `data` must live as long as this.
  TrainingSteps(const ExperimentConfig& config, const Dataset& data, Device device,
                std::function<void(const std::string&)> say);

  const SparseTransformer& model() const { return model_; }
  const Ema* average() const { return ema_.get(); }  // null: none
  RunTensors tensors() { return {model_, adam_, ema_.get()}; }

  /// Goes on after those that `saved` has behind it; the tensors have been loaded.
  void resume(const RunState& saved);

  /// Fills in what `resume` takes.
  void save_to(RunState& state) const;

  /// Enqueues the next step.
  void begin();

  /// Steps enqueued so far, and those of them that have not been finished.
  int64_t begun() const { return begun_; }
  int64_t unfinished() const { return numbers_.size(); }

  /// Waits for the oldest unfinished step, if there are more than `left`, and says what it reports. Throws Error when
  /// its loss is not finite, or its gradient is not and loss scaling cannot help: no weight has changed then.
  std::optional<StepReport> finish(int64_t left);

 private:
  Tensor read_batch(int64_t step) const;
  void enqueue_micro_batch(const Tensor& tokens, int64_t i);
  void enqueue_update();
  int64_t micro_batch() const;
  double share(int64_t i) const;
  bool update_scaler(int64_t step, double norm);
  std::string first_non_finite(const char* what, const Tensor& flat) const;

  const ExperimentConfig& config_;
  const TrainConfig& train_;
  const Dataset& data_;
  const Device device_;
  SparseTransformer model_;
  Adam adam_;
  std::unique_ptr<Ema> ema_;
  LossScaler scaler_;
  BatchQueue batches_;
  StepRunner runner_;
  NumberQueue numbers_;
  Tensor report_;  // of the newest step, on the device: the loss of each micro-batch, the gradient's sum of squares
  int64_t begun_ = 0;
  int64_t updates_ = 0;  // of the weights: finished steps less those that loss scaling skipped
};

}  // namespace lacuna

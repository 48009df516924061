#pragma once
// What a run must remember to go on as if it had never stopped: checkpoints.

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "experiments/config.h"
#include "models/sparse_transformer.h"
#include "optim/adam.h"
#include "optim/ema.h"
#include "optim/loss_scaler.h"

namespace lacuna {

/// All of a run that is no tensor. Data order, dropout and the learning rate are functions of (seed, step), so nothing
/// else has to be remembered.
struct RunState {
  ExperimentConfig config;
  std::string data_fingerprint;
  int64_t step = 0;       // optimizer steps done
  int64_t best_step = 0;  // where the validation split scored best; 0: nowhere yet
  double best_bits_per_dim = 0.0;
  LossScaler::State loss_scaler;
  int64_t updates = 0;  // of the weights: steps less those that loss scaling skipped
  int threads = 0;      // of the process that saved
};

/// The tensors of a run, where they live.
struct RunTensors {
  const SparseTransformer& model;
  Adam& adam;
  Ema* ema;  // null: no average
};

/// The checkpoints of a run: folders step-00001234 with
///
///   model.safetensors                      weights under their documented names, in f32, or f64 in an f64 run; the
///   model's
///                                          configuration as metadata
///   ema.safetensors                        their averages, under the same names
///   optimizer-00000-of-00001.safetensors   exp_avg.<name> and exp_avg_sq.<name>
///   train_state.json                       RunState
///   manifest.json                          format, step, and bytes and SHA-256 of every file
///
/// A checkpoint appears by one rename after all of it reached the disk, and is verified before it is used.

/// Saves state.step under `folder` and returns the checkpoint. On failure throws Error, and leaves nothing new behind.
std::filesystem::path save_checkpoint(const std::filesystem::path& folder, const RunState& state,
                                      const RunTensors& tensors);

/// Reads everything once: manifest, sizes, checksums, state. Throws Error that names the checkpoint, the file and what
/// is wrong with it.
RunState verify_checkpoint(const std::filesystem::path& checkpoint);

/// Fills the tensors from a verified checkpoint. Throws Error for a tensor that is missing, unknown or of another
/// shape.
void load_checkpoint(const std::filesystem::path& checkpoint, const RunState& state, const RunTensors& tensors);

/// Checkpoints of `folder`, newest first, unverified.
std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& folder);

/// A checkpoint, its state, and one line for each newer checkpoint that was passed over, with the reason.
struct FoundCheckpoint {
  std::filesystem::path path;
  RunState state;
  std::vector<std::string> rejected;
};

/// The newest checkpoint that verifies. With none, `path` is empty.
FoundCheckpoint newest_good_checkpoint(const std::filesystem::path& folder);

/// Deletes all but the newest `keep` checkpoints and that of `best_step`.
void prune_checkpoints(const std::filesystem::path& folder, int64_t keep, int64_t best_step);

/// The name of a step's checkpoint: step-00001234.
std::string checkpoint_name(int64_t step);

/// A line for every key of the configuration with which `now` cannot continue `saved`.
std::vector<std::string> refused_differences(const ExperimentConfig& saved, const ExperimentConfig& now);

/// A line for every key whose new value takes effect from here on.
std::vector<std::string> accepted_differences(const ExperimentConfig& saved, const ExperimentConfig& now);

/// Which weights of a checkpoint to use.
enum class Weights : uint8_t { averaged, last };

/// The checkpoint that a person means by `path`: a checkpoint folder, a run folder (its newest good checkpoint), or a
/// safetensors file. Says nothing of its contents yet.
struct CheckpointSource {
  std::filesystem::path weights;  // the safetensors file to read
  std::optional<RunState> state;
  ExperimentConfig config;  // of the state, or of the file's metadata alone
};
CheckpointSource find_checkpoint(const std::filesystem::path& path, Weights weights, const std::string& program);

/// Reads every parameter of `model` from a safetensors file, converting the dtype. Throws Error for a tensor that is
/// missing, unknown or of another shape.
void load_weights(const std::filesystem::path& file, const SparseTransformer& model);

/// The weights of `model` as an archive: names, values and metadata.
void save_weights(const std::filesystem::path& file, const SparseTransformer& model);

}  // namespace lacuna

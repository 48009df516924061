#include "experiments/run_state.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <system_error>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "core/archive.h"
#include "core/error.h"
#include "core/file.h"
#include "experiments/environment.h"
#include "experiments/parse.h"

namespace lacuna {
namespace fs = std::filesystem;
namespace {

using Json = nlohmann::json;  // keys in order, so that equal contents have equal text

constexpr int kFormat = 1;
constexpr const char* kManifest = "manifest.json";
constexpr const char* kState = "train_state.json";
constexpr const char* kModel = "model.safetensors";
constexpr const char* kAverage = "ema.safetensors";
constexpr const char* kOptimizer = "optimizer-00000-of-00001.safetensors";

// Views of a buffer that is laid out as the parameters, under their names.
std::vector<NamedTensor> named_views(const Parameters& parameters, const Tensor& flat, const std::string& prefix = "") {
  std::vector<NamedTensor> tensors;
  for (const Parameters::Entry& entry : parameters.entries())
    tensors.push_back({prefix + entry.name, flat.view(entry.offset, entry.shape)});
  return tensors;
}

void append(std::vector<NamedTensor>& to, std::vector<NamedTensor> from) {
  to.insert(to.end(), from.begin(), from.end());
}

// Reads exactly `tensors`: no tensor of the file is ignored, none keeps its old value.
void read_all(const Archive& archive, const std::vector<NamedTensor>& tensors) {
  std::set<std::string> names;
  for (const NamedTensor& t : tensors) {
    check(archive.contains(t.name), archive.path().string(), ": tensor ", t.name, " is missing");
    const Shape& shape = archive.entries().at(t.name).shape;
    check(shape == t.tensor.shape(), archive.path().string(), ": tensor ", t.name, " must have shape ",
          t.tensor.shape(), ", has ", shape);
    archive.read_into(t.name, t.tensor);
    names.insert(t.name);
  }
  for (const auto& [name, entry] : archive.entries())
    check(names.contains(name), archive.path().string(), ": tensor ", name, " is none of this model's");
}

Json to_json(const RunState& state) {
  return {{"format", kFormat},
          {"written_by", version()},
          {"program", state.config.program},
          {"preset", state.config.preset},
          {"config", to_map(state.config)},
          {"data_fingerprint", state.data_fingerprint},
          {"step", state.step},
          {"samples", state.step * state.config.train.batch},
          {"tokens", state.step * state.config.train.batch * state.config.model.n_ctx},
          {"best_step", state.best_step},
          {"best_bits_per_dim", state.best_bits_per_dim},
          {"updates", state.updates},
          {"loss_scale", state.loss_scaler.scale},
          {"finite_steps", state.loss_scaler.finite_steps},
          {"rng_scheme", Rng::kScheme},
          {"threads", state.threads}};
}

RunState state_from_json(const Json& json, const std::string& origin) {
  check(json.at("format") == kFormat, origin, ": format must be ", kFormat, ", is ", json.at("format").dump());
  check(json.at("rng_scheme") == Rng::kScheme, origin, ": rng_scheme must be ", Rng::kScheme, ", is ",
        json.at("rng_scheme").dump());
  RunState state;
  state.config.program = json.at("program");
  state.config.preset = json.at("preset");
  merge_map(state.config, json.at("config"), origin);
  state.data_fingerprint = json.at("data_fingerprint");
  state.step = json.at("step");
  state.best_step = json.at("best_step");
  state.best_bits_per_dim = json.at("best_bits_per_dim");
  state.updates = json.value("updates", state.step);  // older checkpoints knew no skipped steps
  state.loss_scaler = {json.value("loss_scale", 1.0), json.value("finite_steps", int64_t{0})};
  state.threads = json.at("threads");
  return state;
}

// The manifest's checksum of itself: of its text without that entry.
std::string manifest_checksum(Json manifest) {
  manifest.erase("checksum");
  return sha256(manifest.dump());
}

void write_manifest(const fs::path& folder, int64_t step, const std::vector<std::string>& files) {
  Json manifest{{"format", kFormat}, {"step", step}, {"files", Json::object()}};
  for (const std::string& name : files) {
    const MappedFile file(folder / name);
    manifest["files"][name] = {{"bytes", file.size()}, {"sha256", sha256(file.bytes())}};
  }
  manifest["checksum"] = manifest_checksum(manifest);
  write_file(folder / kManifest, manifest.dump(2) + "\n");
}

// A folder that is removed unless it was renamed into place.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(fs::path path) : path_(std::move(path)) {
    std::error_code error;
    fs::remove_all(path_, error);
    fs::create_directory(path_, error);
    check(!error, path_.string(), ": cannot create the folder: ", error.message());
  }
  ~TemporaryFolder() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const fs::path& path() const { return path_; }

  // To `target`. What stood there takes this folder's place, in the same instant, and goes with it.
  void move_to(const fs::path& target) {
    const bool replace = fs::exists(target);
    const int result = replace ? ::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE)
                               : ::rename(path_.c_str(), target.c_str());
    check(result == 0, target.string(), ": cannot rename into place: ", std::generic_category().message(errno));
    sync_folder(target.parent_path());
  }

 private:
  fs::path path_;
};

void check_space(const fs::path& folder, const RunTensors& tensors) {
  const int64_t copies = tensors.ema ? 4 : 3;  // weights, two moments, average
  const auto needed = static_cast<uintmax_t>(tensors.model.parameters().values().bytes() * copies) * 11 / 10;
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  check(error || space.available >= needed, folder.string(), ": a checkpoint needs ",
        format_bytes(static_cast<int64_t>(needed)), ", but only ", format_bytes(static_cast<int64_t>(space.available)),
        " are free");
}

int64_t step_of_name(const fs::path& path) {
  const std::string name = path.filename().string();
  if (!name.starts_with("step-") || name.size() < 13) return -1;
  const std::string digits = name.substr(5);
  if (digits.size() > 18 || digits.find_first_not_of("0123456789") != std::string::npos) return -1;
  return std::stoll(digits);
}

}  // namespace

std::string checkpoint_name(int64_t step) { return fmt::format("step-{:08}", step); }

fs::path save_checkpoint(const fs::path& folder, const RunState& state, const RunTensors& tensors) {
  check_space(folder, tensors);
  const Parameters& parameters = tensors.model.parameters();
  TemporaryFolder temporary(folder / concat(".tmp-", checkpoint_name(state.step), "-", ::getpid()));

  std::vector<std::string> files{kModel, kOptimizer, kState};
  save_weights(temporary.path() / kModel, tensors.model);
  std::vector<NamedTensor> moments = named_views(parameters, tensors.adam.exp_avg(), "exp_avg.");
  append(moments, named_views(parameters, tensors.adam.exp_avg_sq(), "exp_avg_sq."));
  write_archive(temporary.path() / kOptimizer, moments);
  if (tensors.ema) {
    files.push_back(kAverage);
    write_archive(temporary.path() / kAverage, named_views(parameters, tensors.ema->average()),
                  to_strings(tensors.model.config()));
  }
  write_file(temporary.path() / kState, to_json(state).dump(2) + "\n");
  write_manifest(temporary.path(), state.step, files);
  sync_folder(temporary.path());

  const fs::path checkpoint = folder / checkpoint_name(state.step);
  temporary.move_to(checkpoint);
  return checkpoint;
}

RunState verify_checkpoint(const fs::path& checkpoint) {
  const std::string where = checkpoint.string();
  check(fs::is_directory(checkpoint), where, ": no such checkpoint");
  check(fs::exists(checkpoint / kManifest), where, ": ", kManifest, " is missing");
  try {
    const Json manifest = Json::parse(read_file(checkpoint / kManifest));
    check(manifest.at("format") == kFormat, where, ": ", kManifest, ": format must be ", kFormat, ", is ",
          manifest.at("format").dump());
    check(manifest.at("checksum") == manifest_checksum(manifest), where, ": ", kManifest,
          " is damaged: its checksum differs");
    for (const char* required : {kModel, kOptimizer, kState})
      check(manifest.at("files").contains(required), where, ": ", kManifest, " does not list ", required);
    for (const auto& [name, expected] : manifest.at("files").items()) {
      check(fs::path(name).filename() == name, where, ": ", kManifest, " lists a file outside the checkpoint: ", name);
      check(fs::exists(checkpoint / name), where, ": ", name, " is missing");
      const MappedFile file(checkpoint / name);
      check(file.size() == expected.at("bytes"), where, ": ", name, " must have ", expected.at("bytes").dump(),
            " bytes, has ", file.size());
      check(expected.at("sha256") == sha256(file.bytes()), where, ": ", name, " is damaged: its checksum differs");
    }
    RunState state = state_from_json(Json::parse(read_file(checkpoint / kState)), (checkpoint / kState).string());
    const int64_t named = step_of_name(checkpoint);
    check(state.step == manifest.at("step") && (named < 0 || state.step == named), where, ": ", kState, " is of step ",
          state.step, ", another one");
    return state;
  } catch (const Json::exception& error) {
    fail(where, ": ", kManifest, " or ", kState, " cannot be read: ", error.what());
  }
}

void load_checkpoint(const fs::path& checkpoint, const RunState& state, const RunTensors& tensors) {
  const Parameters& parameters = tensors.model.parameters();
  load_weights(checkpoint / kModel, tensors.model);
  std::vector<NamedTensor> moments = named_views(parameters, tensors.adam.exp_avg(), "exp_avg.");
  append(moments, named_views(parameters, tensors.adam.exp_avg_sq(), "exp_avg_sq."));
  read_all(Archive(checkpoint / kOptimizer), moments);
  tensors.adam.set_steps(state.updates);
  if (tensors.ema) {
    read_all(Archive(checkpoint / kAverage), named_views(parameters, tensors.ema->average()));
    tensors.ema->set_updates(state.updates);
  }
}

std::vector<fs::path> list_checkpoints(const fs::path& folder) {
  std::vector<fs::path> checkpoints;
  if (fs::is_directory(folder))
    for (const fs::directory_entry& entry : fs::directory_iterator(folder))
      if (step_of_name(entry.path()) >= 0) checkpoints.push_back(entry.path());
  std::sort(checkpoints.begin(), checkpoints.end(),
            [](const fs::path& a, const fs::path& b) { return step_of_name(a) > step_of_name(b); });
  return checkpoints;
}

FoundCheckpoint newest_good_checkpoint(const fs::path& folder) {
  FoundCheckpoint found;
  for (const fs::path& checkpoint : list_checkpoints(folder)) {
    try {
      found.state = verify_checkpoint(checkpoint);
      found.path = checkpoint;
      return found;
    } catch (const Error& error) {
      found.rejected.push_back(error.what());
    }
  }
  return found;
}

void prune_checkpoints(const fs::path& folder, int64_t keep, int64_t best_step) {
  const std::vector<fs::path> checkpoints = list_checkpoints(folder);
  for (size_t i = static_cast<size_t>(keep); i < checkpoints.size(); ++i) {
    if (step_of_name(checkpoints[i]) == best_step) continue;
    // Out of sight first: a deletion that is cut short must not look like a checkpoint.
    const fs::path trash = folder / concat(".trash-", checkpoints[i].filename().string(), "-", ::getpid());
    fs::rename(checkpoints[i], trash);
    sync_folder(folder);
    fs::remove_all(trash);
  }
}

namespace {

std::vector<std::string> differences(const ExperimentConfig& saved, const ExperimentConfig& now, OnResume kind) {
  std::vector<std::string> lines;
  for (const ConfigKey& key : config_keys()) {
    const std::string before = to_toml(key.get(saved)), after = to_toml(key.get(now));
    if (key.on_resume == kind && before != after) lines.push_back(concat(key.name, ": ", before, " -> ", after));
  }
  return lines;
}

}  // namespace

std::vector<std::string> refused_differences(const ExperimentConfig& saved, const ExperimentConfig& now) {
  return differences(saved, now, OnResume::refuse);
}

std::vector<std::string> accepted_differences(const ExperimentConfig& saved, const ExperimentConfig& now) {
  return differences(saved, now, OnResume::continue_with);
}

CheckpointSource find_checkpoint(const fs::path& path, Weights weights, const std::string& program) {
  check(fs::exists(path), "--checkpoint ", path.string(), ": no such file or folder");
  CheckpointSource source;
  if (fs::is_directory(path)) {
    fs::path checkpoint = path;
    if (fs::is_directory(path / "checkpoints")) {
      FoundCheckpoint found = newest_good_checkpoint(path / "checkpoints");
      check(!found.path.empty(), "--checkpoint ", path.string(), ": this run has no good checkpoint",
            found.rejected.empty() ? "" : "; the newest: ", found.rejected.empty() ? "" : found.rejected.front());
      checkpoint = found.path;
      source.state = std::move(found.state);
    } else {
      source.state = verify_checkpoint(path);
    }
    const bool averaged = weights == Weights::averaged && fs::exists(checkpoint / kAverage);
    source.weights = checkpoint / (averaged ? kAverage : kModel);
    source.config = source.state->config;
    check(source.config.program == program, "--checkpoint ", path.string(), ": is of the program ",
          source.config.program, ", not ", program);
    return source;
  }
  source.weights = path;
  source.config.program = program;
  const Archive archive(path);
  check(!archive.metadata().empty(), path.string(),
        ": has no model configuration in its metadata, so it is no checkpoint of a Sparse Transformer from here");
  try {
    source.config.model = model_config_from_strings(archive.metadata());
  } catch (const Error& error) {
    fail(path.string(), ": metadata: ", error.what());
  }
  return source;
}

void load_weights(const fs::path& file, const SparseTransformer& model) {
  read_all(Archive(file), named_views(model.parameters(), model.parameters().values()));
  model.parameters().update_rounded();
}

void save_weights(const fs::path& file, const SparseTransformer& model) {
  write_archive(file, named_views(model.parameters(), model.parameters().values()), to_strings(model.config()));
}

}  // namespace lacuna

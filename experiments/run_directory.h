#pragma once
// The folder of a run, held by one process.

#include <filesystem>
#include <string>

namespace lacuna {

/// <out>/ with config.toml, command.txt, metrics.jsonl, samples/, checkpoints/, logs/, errors/. While alive, the
/// process holds <out>/.lock, so no other run writes here; the system releases it however the process ends.
class RunDirectory {
 public:
  /// Creates what is missing, takes the lock and removes temporary files that killed runs left in this folder.
  /// Throws Error when `path` is no folder or cannot be written, or when another process holds it (with its number
  /// and host).
  explicit RunDirectory(const std::filesystem::path& path);
  ~RunDirectory();
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path config() const { return path_ / "config.toml"; }
  std::filesystem::path command() const { return path_ / "command.txt"; }
  std::filesystem::path metrics() const { return path_ / "metrics.jsonl"; }
  std::filesystem::path samples() const { return path_ / "samples"; }
  std::filesystem::path checkpoints() const { return path_ / "checkpoints"; }
  std::filesystem::path log() const { return path_ / "logs" / "rank-00000.log"; }

  /// Moves the files of an earlier run to <out>/previous-<k>/, with the first k that is free, and returns that folder;
  /// empty when there was no run.
  std::filesystem::path set_aside_previous_run();

  /// Moves the checkpoints beyond `step` to such a folder, and returns it; empty when there were none.
  std::filesystem::path set_aside_checkpoints_after(int64_t step);

  /// Leaves errors/rank-00000.json: time, step and what happened. Never throws.
  void record_failure(int64_t step, const std::string& what) const noexcept;

 private:
  void create_folders() const;
  std::filesystem::path create_previous() const;

  std::filesystem::path path_;
  int lock_ = -1;
};

}  // namespace lacuna

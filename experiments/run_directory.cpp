#include "experiments/run_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/file.h"
#include "experiments/environment.h"
#include "experiments/run_state.h"

namespace lacuna {
namespace fs = std::filesystem;
namespace {

// Leftovers of killed writers: AtomicFile's .name.pid.n.tmp, and the .tmp- and .trash- folders of checkpoints.
bool is_leftover(const fs::path& path) {
  const std::string name = path.filename().string();
  return name.starts_with(".tmp-") || name.starts_with(".trash-") || (name.starts_with(".") && name.ends_with(".tmp"));
}

void remove_leftovers(const fs::path& folder) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error))
    if (is_leftover(entry.path())) fs::remove_all(entry.path(), error);
}

}  // namespace

RunDirectory::RunDirectory(const fs::path& path) : path_(path) {
  check(!fs::exists(path) || fs::is_directory(path), "--out ", path.string(),
        ": must be a folder, but a file is there");
  std::error_code error;
  fs::create_directories(path, error);
  check(!error, "--out ", path.string(), ": cannot create the folder: ", error.message());

  const fs::path lock = path / ".lock";
  lock_ = ::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  check(lock_ >= 0, "--out ", path.string(), ": cannot write there: ", std::generic_category().message(errno));
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    const int reason = errno;
    ::close(lock_);
    check(reason == EWOULDBLOCK, lock.string(), ": cannot lock: ", std::generic_category().message(reason));
    std::string holder = read_file(lock);
    while (!holder.empty() && holder.back() == '\n') holder.pop_back();
    fail("output directory ", path.string(), " is in use by ", holder.empty() ? "another process" : holder,
         "; wait for it or give another --out");
  }
  try {
    const std::string holder = concat("process ", ::getpid(), " on ", host_name(), "\n");
    check(::ftruncate(lock_, 0) == 0 &&
              ::pwrite(lock_, holder.data(), holder.size(), 0) == static_cast<ssize_t>(holder.size()),
          lock.string(), ": cannot write: ", std::generic_category().message(errno));
    create_folders();
    for (const fs::path& folder : {path_, samples(), checkpoints(), path_ / "errors"}) remove_leftovers(folder);
  } catch (...) {
    ::close(lock_);
    throw;
  }
}

RunDirectory::~RunDirectory() { ::close(lock_); }

void RunDirectory::create_folders() const {
  for (const fs::path& folder : {samples(), checkpoints(), path_ / "errors", path_ / "logs"}) {
    std::error_code error;
    fs::create_directories(folder, error);
    check(!error, folder.string(), ": cannot create the folder: ", error.message());
  }
}

fs::path RunDirectory::create_previous() const {
  int k = 1;
  while (fs::exists(path_ / concat("previous-", k))) ++k;
  const fs::path previous = path_ / concat("previous-", k);
  fs::create_directory(previous);
  return previous;
}

fs::path RunDirectory::set_aside_previous_run() {
  if (fs::is_empty(checkpoints()) && !fs::exists(metrics())) return {};
  const fs::path previous = create_previous();
  for (const char* name : {"config.toml", "command.txt", "metrics.jsonl", "samples", "checkpoints", "logs", "errors"})
    if (fs::exists(path_ / name)) fs::rename(path_ / name, previous / name);
  sync_folder(path_);
  create_folders();
  return previous;
}

fs::path RunDirectory::set_aside_checkpoints_after(int64_t step) {
  fs::path previous;
  for (const fs::path& checkpoint : list_checkpoints(checkpoints())) {
    if (checkpoint.filename() <= checkpoint_name(step)) continue;
    if (previous.empty()) {
      previous = create_previous();
      fs::create_directory(previous / "checkpoints");
    }
    fs::rename(checkpoint, previous / "checkpoints" / checkpoint.filename());
  }
  if (!previous.empty()) sync_folder(checkpoints());
  return previous;
}

void RunDirectory::record_failure(int64_t step, const std::string& what) const noexcept {
  try {
    const nlohmann::ordered_json json{{"time", time_now()}, {"host", host_name()}, {"step", step}, {"what", what}};
    write_file(path_ / "errors" / "rank-00000.json",
               json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  } catch (...) {  // a full disk may be the very failure; it has been printed
  }
}

}  // namespace lacuna

#pragma once
// Programs run as a user would run them.

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <csignal>

#include <chrono>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "tests/support/temporary_folder.h"

namespace lacuna {

/// How a program ended, and what it said.
struct Outcome {
  int code = -1;    // exit code, or 128 + the signal that ended it
  std::string out;  // standard output
  std::string err;  // standard error
};

/// A running program, with one compute thread. Killed when it goes out of scope.
class Process {
 public:
  explicit Process(const std::vector<std::string>& command) {
    const std::string out = path("out"), err = path("err");
    pid_ = ::fork();
    check(pid_ >= 0, "Process: cannot fork");
    if (pid_ != 0) return;
    ::setenv("OMP_NUM_THREADS", "1", 1);
    ::dup2(::open("/dev/null", O_RDONLY), 0);
    ::dup2(::open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 1);
    ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 2);
    std::vector<char*> arguments;
    for (const std::string& argument : command) arguments.push_back(const_cast<char*>(argument.c_str()));
    arguments.push_back(nullptr);
    ::execvp(arguments[0], arguments.data());
    ::_exit(127);
  }
  ~Process() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  void signal(int number) const { ::kill(pid_, number); }

  /// Waits until `condition` holds or the program has ended; returns whether it holds.
  bool wait_until(const std::function<bool()>& condition) const {
    while (!condition()) {
      siginfo_t info{};
      ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT);
      if (info.si_pid != 0) return condition();
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    return true;
  }

  /// Waits for the end.
  Outcome finish() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_file(path("out")),
            read_file(path("err"))};
  }

 private:
  std::string path(const char* name) const { return (folder_.path() / name).string(); }

  TemporaryFolder folder_;
  pid_t pid_ = -1;
};

/// Runs a program to its end.
inline Outcome run(const std::vector<std::string>& command) { return Process(command).finish(); }

inline std::vector<std::string> operator+(std::vector<std::string> a, const std::vector<std::string>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace lacuna

#pragma once
// What a run says while it works.

#include <chrono>
#include <filesystem>
#include <string>
#include <string_view>

namespace lacuna {

/// What standard output is. Colors are off where NO_COLOR is set.
struct Terminal {
  bool is_terminal = false, color = false;
  int columns = 80;
};
Terminal standard_output();

/// Lines on standard output and in a log file; on a terminal also a progress bar below them. Output that cannot be
/// written (a closed pipe, a full disk under the log) is dropped: a run does not die of its log.
class Console {
 public:
  Console() = default;
  ~Console();
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  /// From here on lines are appended to `path` too, with the time.
  void log_to(const std::filesystem::path& path);

  /// Writes text that may have several lines.
  void print(std::string_view text);

  /// Progress of a piece of work, `done` of `total`, with `details` behind it: a bar on a terminal, elsewhere a line
  /// at the first call and then every ten seconds.
  void progress(std::string_view what, int64_t done, int64_t total, std::string_view details);

  bool is_terminal() const { return terminal_.is_terminal; }

  /// Removes the bar.
  void end_progress();

 private:
  void write_log(std::string_view line);

  const Terminal terminal_ = standard_output();
  bool bar_shown_ = false;
  int log_ = -1;
  std::chrono::steady_clock::time_point last_progress_{};
  std::string last_what_;
};

}  // namespace lacuna

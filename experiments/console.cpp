#include "experiments/console.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>

#include <fmt/chrono.h>
#include <fmt/format.h>

#include "core/error.h"

namespace lacuna {
namespace {

constexpr std::chrono::milliseconds kBarInterval{100};
constexpr std::chrono::seconds kLineInterval{10};

void write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(fd, text.data(), text.size());
    if (written <= 0) return;
    text.remove_prefix(static_cast<size_t>(written));
  }
}

bool is_set(const char* variable) {
  const char* value = std::getenv(variable);
  return value && *value;
}

}  // namespace

Terminal standard_output() {
  const char* term = std::getenv("TERM");
  Terminal out;
  out.is_terminal = ::isatty(STDOUT_FILENO) == 1 && !(term && std::string_view(term) == "dumb");
  out.color = out.is_terminal && !is_set("NO_COLOR");
  if (winsize size{}; ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) out.columns = size.ws_col;
  return out;
}

Console::~Console() {
  end_progress();
  if (log_ >= 0) ::close(log_);
}

void Console::log_to(const std::filesystem::path& path) {
  log_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  check(log_ >= 0, path.string(), ": cannot open for writing: ", std::generic_category().message(errno));
}

void Console::write_log(std::string_view line) {
  if (log_ < 0) return;
  std::tm local{};
  const std::time_t now = std::time(nullptr);
  ::localtime_r(&now, &local);
  write_all(log_, fmt::format("{:%Y-%m-%d %H:%M:%S}  {}\n", local, line));
}

void Console::print(std::string_view text) {
  end_progress();
  while (!text.empty() && text.back() == '\n') text.remove_suffix(1);
  write_all(STDOUT_FILENO, std::string(text) + "\n");
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    write_log(text.substr(begin, end - begin));
    begin = end + 1;
  }
}

void Console::progress(std::string_view what, int64_t done, int64_t total, std::string_view details) {
  const auto now = std::chrono::steady_clock::now();
  const bool first = last_what_ != what;
  if (!first && now - last_progress_ < (is_terminal() ? std::chrono::milliseconds(kBarInterval) : kLineInterval))
    return;
  last_what_ = what;
  last_progress_ = now;
  const std::string counts = fmt::format("{} {}/{}", what, done, total);
  if (!is_terminal()) {
    print(fmt::format("{}  {}", counts, details));
    return;
  }
  const int width = std::clamp(standard_output().columns - static_cast<int>(counts.size() + details.size()) - 6, 0, 40);
  const int filled = total > 0 ? static_cast<int>(width * std::min(done, total) / total) : 0;
  std::string bar;
  for (int i = 0; i < width; ++i) bar += i < filled ? "━" : "─";
  write_all(STDOUT_FILENO, fmt::format("\r\033[K{} {}{}{}  {}", counts, terminal_.color ? "\033[36m" : "", bar,
                                       terminal_.color ? "\033[0m" : "", details));
  bar_shown_ = true;
}

void Console::end_progress() {
  if (bar_shown_) write_all(STDOUT_FILENO, "\r\033[K");
  bar_shown_ = false;
}

}  // namespace lacuna

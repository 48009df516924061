#include "experiments/signals.h"

#include <csignal>
#include <unistd.h>

#include <atomic>

namespace lacuna {
namespace {

std::atomic<bool> stopping{false}, interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free, "signal handlers need lock-free atomics");

extern "C" void on_stop_signal(int signal) {
  stopping = true;
  // SIGUSR1 may arrive more than once, from each layer of a job system.
  if (signal != SIGUSR1 && interrupted.exchange(true)) ::_exit(128 + signal);
}

}  // namespace

void ignore_write_signals() {
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
}

void handle_stop_signals() {
  struct sigaction action {};
  action.sa_handler = on_stop_signal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) sigaction(signal, &action, nullptr);
}

bool stop_requested() { return stopping; }

}  // namespace lacuna

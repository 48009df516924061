#include "experiments/signals.h"

#include <pthread.h>
#include <unistd.h>
#include <csignal>

#include <atomic>
#include <thread>

namespace lacuna {
namespace {

std::atomic<bool> stopping{false};

}  // namespace

void ignore_write_signals() {
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
}

void handle_stop_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) sigaddset(&signals, signal);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // threads made from here on inherit it
  std::thread([signals] {
    while (true) {
      int signal = 0;
      if (sigwait(&signals, &signal) != 0) continue;
      // SIGTERM and SIGUSR1 may come more than once, from each layer of a job system.
      if (stopping.exchange(true) && signal == SIGINT) ::_exit(128 + SIGINT);
    }
  }).detach();
}

bool stop_requested() { return stopping; }

}  // namespace lacuna

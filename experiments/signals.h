#pragma once
// Being asked to stop.

#include <exception>

namespace lacuna {

/// Thrown to leave a long computation when the run was asked to stop.
class Stopped : public std::exception {
 public:
  const char* what() const noexcept override { return "stopped by a signal"; }
};

/// For every program: writing to a closed pipe or beyond a file-size limit fails with an error instead of a signal.
void ignore_write_signals();

/// From here on SIGINT, SIGTERM and SIGUSR1 ask to stop, and stop_requested() says so; a SIGINT after that ends the
/// process at once with 130. Call it before anything starts threads: signals are taken by a thread of their own and
/// blocked in all others. A handler that runs on the stack of oneDNN 2.6's compiled matrix products corrupts memory
/// (AVX-512: every second stop crashed), presumably what they keep below the stack pointer.
void handle_stop_signals();

bool stop_requested();

}  // namespace lacuna

#pragma once
// The same work again and again on a device: the steps of training, the positions of sampling.

#include <cstdint>
#include <deque>
#include <functional>
#include <string>

#include "core/cuda/runtime.h"

namespace lacuna {

/// Runs one step after the other: on a GPU as a CUDA graph, the first one excepted, for it asks for the memory of all.
/// Steps that cannot be recorded are launched kernel by kernel, after a line that says so. A step may have several
/// parts, each with a graph of its own.
class StepRunner {
 public:
  enum class Recording : uint8_t {
    every_step,  // so that arguments may change from step to step
    once,        // later steps are replays: the function is not called again, and nobody else may allocate meanwhile
  };

  /// `say` gets the line; without it standard error does.
  StepRunner(Device device, Recording recording, std::function<void(const std::string&)> say = {})
      : device_(device), recording_(recording), say_(std::move(say)) {}

  /// `enqueue` is called once, or a second time after `undo` when recording it failed: nothing of it has run then, and
  /// `undo` takes back what it has counted on the host.
  void run(const std::function<void()>& enqueue, const std::function<void()>& undo, size_t part = 0);

 private:
  struct Part {
    bool first = true, recorded = false;
    int rebuilt = 0;
    gpu::Graph graph;
  };
  void say(const std::string& line) const;

  Device device_;
  Recording recording_;
  std::function<void(const std::string&)> say_;
  bool graphs_ = true;
  std::deque<Part> parts_;
};

}  // namespace lacuna

#pragma once
// A training step on a device: how tokens get there, how the work is launched, how its numbers come back. On the CPU all
// of it happens at once. On a GPU nothing in a step waits: the next batch is copied while this one computes, the step runs
// as one CUDA graph, and its numbers are read while the next step runs.

#include <array>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/cuda/runtime.h"
#include "core/cuda/step_runner.h"
#include "core/tensor.h"

namespace lacuna {

/// Which algorithm cuBLASLt uses for each product of matrices so far, and what is wrong with taking over those of an earlier
/// process ("" if nothing): a resumed run shall compute what an uninterrupted one does. Nothing on the CPU.
std::string product_algorithms(Device device);
std::string take_over_product_algorithms(Device device, const std::string& algorithms);

/// The batches of a run in order, on a device.
class BatchQueue {
 public:
  /// `read` gives the batch of a step, on the CPU; all have one shape.
  BatchQueue(Device device, std::function<Tensor(int64_t step)> read);
  ~BatchQueue();

  /// The batch of `step`, on the device; work enqueued from now on finds it there. Valid until the next get().
  Tensor get(int64_t step);

  /// Says that the work of the batch that get() gave is enqueued, and begins to bring that of the step after it.
  void prefetch_next();

 private:
  struct Slot {
    int64_t step = -1;
    std::unique_ptr<gpu::PinnedBuffer> pinned;
    Tensor tokens;
    gpu::Event arrived, used;
  };
  void fill(Slot& slot, int64_t step);

  Device device_;
  std::function<Tensor(int64_t)> read_;
  std::array<std::unique_ptr<Slot>, 2> slots_;
  Slot* current_ = nullptr;
};

/// Numbers on their way from a device to the host, in order, at most two sets at a time.
class NumberQueue {
 public:
  explicit NumberQueue(Device device) : device_(device) {}

  /// Sends the f64 numbers of `from`, as they will be when all work enqueued before is done. Throws Error when two sets
  /// wait already.
  void push(const Tensor& from);

  /// The numbers pushed first, once they are there; nothing when all have been taken.
  std::optional<std::vector<double>> pop();

  int64_t size() const { return pushed_ - popped_; }

 private:
  struct Transfer {
    Tensor from;
    std::unique_ptr<gpu::PinnedBuffer> pinned;  // null on the CPU
    gpu::Event arrived;
  };
  Device device_;
  std::array<Transfer, 2> transfers_;
  int64_t pushed_ = 0, popped_ = 0;
};

}  // namespace lacuna

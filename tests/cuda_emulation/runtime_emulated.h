#pragma once
// The emulated device: one GPU whose memory is host memory and whose streams are queues on the host.
//
// A stream does nothing until somebody waits for it: work that reads host memory too late, or whose result is read too
// early, meets 0xFF bytes. The device is used by one host thread at a time.

#include <functional>

#include "core/cuda/runtime.h"

namespace lacuna::emulation {

/// Adds to what `stream` will do; a stream that is no queue (native is null) does it at once.
void enqueue(Stream stream, std::function<void()> work);

/// What a block can have, static and dynamic.
size_t shared_bytes_of_device();

/// While alive, the machine has no usable GPU, for this reason.
class NoDevice {
 public:
  explicit NoDevice(const std::string& reason);
  ~NoDevice();
};

/// While alive, the GPU has this compute capability, and as much shared memory for a block as it goes with.
class ComputeCapability {
 public:
  ComputeCapability(int major, int minor);
  ~ComputeCapability();
  ComputeCapability(const ComputeCapability&) = delete;

 private:
  const gpu::DeviceProperties before_;
};

/// While alive, no graph can be made of what was recorded, for this reason.
class NoGraphs {
 public:
  explicit NoGraphs(const std::string& reason);
  ~NoGraphs();
};

/// Why the GPU has no code of kernels; "" if it has.
std::string why_no_code();

/// Bytes in blocks that are not freed yet; frees take effect in the order of the compute stream.
int64_t bytes_in_use();

}  // namespace lacuna::emulation

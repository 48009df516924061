#pragma once
// The host side of the GPUs: devices, memory, streams, events, graphs, in plain C++. runtime.cpp implements it with the
// CUDA runtime; the emulated build with host memory and queues (tests/cuda_emulation/runtime_emulated.cpp). In a build
// for the CPU alone there are no devices.
//
// Everything that takes a Stream only enqueues: the work happens later, in the order of the stream. Functions throw
// Error with what was done and CUDA's reason.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "core/device.h"
#include "core/error.h"

namespace lacuna::gpu {

// --- Devices

struct DeviceProperties {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  int64_t memory_bytes = 0;
  int64_t shared_bytes = 0;  // of one block at most, with opt-in
};

/// GPUs that this process can use: 0 on a machine without one, or with a driver that is missing or too old.
int device_count();

/// Why device_count() is 0, on one line.
std::string why_no_device();

const DeviceProperties& properties(Device device);

/// Throws Error with the reason on one line unless `device` exists and has an architecture that kernels can be built
/// for.
void check_usable(Device device);

/// The part of it that is about the architecture.
inline void check_architecture(Device device, const DeviceProperties& p) {
  check(p.major >= 8, device, " is ", p.name, " of compute capability ", p.major, '.', p.minor,
        "; the kernels need 8.0 or newer");
}

/// Of its memory, what neither this process nor any other has.
int64_t free_bytes(Device device);

/// "CUDA runtime 13.0, driver 13.0".
std::string versions();

// --- Memory. Tensors get theirs from Allocator::of(device), which caches what these two give.

/// Null when the device has no such block.
void* allocate(Device device, int64_t bytes);
void deallocate(Device device, void* block) noexcept;

/// Whether freed blocks may be kept and given out again. Not under emulation, where every block has its exact size and
/// is fresh, so that an access beyond it or before its first write shows; nor with LACUNA_NO_MEMORY_CACHE=1, so that it
/// shows to compute-sanitizer.
bool reuses_blocks();

/// Host memory that copies of a stream can read and write at any time.
class PinnedBuffer {
 public:
  explicit PinnedBuffer(int64_t bytes);
  ~PinnedBuffer();
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

/// Copies between any two of device memory and pinned host memory. Other host memory must stay as it is until
/// synchronize(), which makes it a copy that waits.
void copy_bytes(Stream stream, void* to, const void* from, int64_t bytes);

/// Sets each of `bytes` bytes to `value`.
void set_bytes(Stream stream, void* to, uint8_t value, int64_t bytes);

// --- Streams

/// The one stream on which a device computes, and the one on which its input arrives meanwhile. Both make `device` the
/// calling thread's current device, so that launches go there.
Stream compute_stream(Device device);
Stream copy_stream(Device device);

/// Waits until all work of the stream is done, and throws Error if some of it failed.
void synchronize(Stream stream);

/// A place in a stream.
class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(Stream stream);                             // here
  void make_wait(Stream stream) const;                    // what comes next in `stream` waits for this place
  void synchronize() const;                               // the caller waits for it; at once if never recorded
  double milliseconds_since(const Event& earlier) const;  // both must have been reached

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Runs the same sequence of work again and again as one CUDA graph: launching thousands of kernels one by one leaves
/// gaps between them.
///
/// Each run() calls its function anew, with the stream recording instead of executing, puts what was recorded (pointers
/// and arguments included) in place of the last run's, and launches that. So arguments may change from run to run, the
/// memory that the function allocates and frees is its own again, and nothing is computed but what the plain calls
/// would compute. The function must not wait for the stream.
class Graph {
 public:
  Graph();
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  /// Throws Error when the work cannot be recorded; then nothing of it has run.
  void run(Stream stream, const std::function<void()>& enqueue, bool replayable = false);

  /// Launches once more what run() recorded last with `replayable`, arguments as they were. It uses the memory that the
  /// function allocated and freed, so from that run() to the last replay nobody else may allocate on the device.
  void replay(Stream stream);

  int64_t nodes() const;            // kernels, copies and fills of the last run
  std::string why_rebuilt() const;  // the last run could not update the graph of the one before; "" if it could

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// --- Errors

/// Throws GpuError "<parts>: CUDA error 700 (...)" for a status of the CUDA runtime that is not success.
[[noreturn]] void fail_cuda(int status, const std::string& what);
template <class... Parts>
void check_cuda(int status, const Parts&... parts) {
  if (status != 0) [[unlikely]]
    fail_cuda(status, concat(parts...));
}

}  // namespace lacuna::gpu

#pragma once
// Where memory lives and work runs, and the queue that orders the work there.

#include <cstdint>
#include <iosfwd>

namespace lacuna {

enum class DeviceType : uint8_t { cpu, cuda };

/// A processor with its own memory: the host, or one GPU of it.
struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

inline constexpr Device kCpu{};
inline constexpr Device kCuda{DeviceType::cuda, 0};

std::ostream& operator<<(std::ostream& out, const Device& device);  // cpu, cuda:0

/// An ordered queue of work on a device. On the CPU work is done when the call returns, and `native` is null;
/// on CUDA `native` is the cudaStream_t.
struct Stream {
  Device device;
  void* native = nullptr;
};

/// The stream on which this thread's operations on `device` run. Throws Error when the build has no such device, or this
/// machine cannot use it.
Stream current_stream(Device device);

/// Waits until everything enqueued on `device` is done, and throws Error if some of it failed.
void synchronize(Device device);

}  // namespace lacuna

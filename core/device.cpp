#include "core/device.h"

#include <ostream>

#include "core/cuda/runtime.h"

namespace lacuna {

std::ostream& operator<<(std::ostream& out, const Device& device) {
  if (device.type == DeviceType::cpu) return out << "cpu";
  return out << "cuda:" << device.index;
}

Stream current_stream(Device device) {
  return device.type == DeviceType::cpu ? Stream{device, nullptr} : gpu::compute_stream(device);
}

void synchronize(Device device) {
  if (device.type == DeviceType::cuda) gpu::synchronize(current_stream(device));
}

}  // namespace lacuna

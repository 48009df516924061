#include "core/device.h"

#include <ostream>

#include "core/error.h"

namespace lacuna {

std::ostream& operator<<(std::ostream& out, const Device& device) {
  if (device.type == DeviceType::cpu) return out << "cpu";
  return out << "cuda:" << device.index;
}

Stream current_stream(Device device) {
  check(device.type == DeviceType::cpu, "device: this build has no backend for ", device, ", only for cpu");
  return Stream{device, nullptr};
}

}  // namespace lacuna

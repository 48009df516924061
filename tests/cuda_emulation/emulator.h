#pragma once
// The host half of core/cuda/gpu.h: with it g++ and clang compile the source of a kernel as it stands.

#include <memory>
#include <string>
#include <tuple>

#include "core/error.h"
#include "tests/cuda_emulation/execution.h"
#include "tests/cuda_emulation/language.h"
//
#include "tests/cuda_emulation/instructions.h"

/// T* name: the block's dynamic shared memory.
#define LACUNA_DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(::lacuna::emulation::this_block->dynamic_shared)

/// A static shared variable: LACUNA_SHARED(float, tile, [4][32]) declares float tile[4][32].
#define LACUNA_SHARED(T, name, ...)               \
  static char name##_key;                         \
  using name##_type = T __VA_ARGS__;              \
  name##_type& name = *static_cast<name##_type*>( \
      ::lacuna::emulation::static_shared(&name##_key, sizeof(name##_type), alignof(name##_type)))

namespace lacuna::emulation {

std::string why_no_code();  // of runtime_emulated.cpp

}  // namespace lacuna::emulation

namespace lacuna::gpu {

/// Why the current device cannot run `kernel`; "" if it can.
template <class... Parameters>
std::string why_no_code(void (*)(Parameters...)) {
  return emulation::why_no_code();
}

/// The stream of a launch, and where in the source it stands.
struct LaunchSite {
  Stream stream;
  emulation::Location where;
  LaunchSite(Stream on, emulation::Location here = emulation::Location::here()) : stream(on), where(here) {}
};

/// Launches kernel<<<grid, block, shared_bytes>>>(args...) on the stream. Every thread gets its own copy of the
/// parameters, as on the device. Throws Error when the configuration is impossible.
template <class... Parameters>
void launch(LaunchSite site, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            std::type_identity_t<Parameters>... args) {
  // No copies in a closure: where it has padding, g++ 12 with -ftrivial-auto-var-init clears other bytes.
  auto shared = std::make_shared<const std::tuple<Parameters...>>(args...);
  emulation::launch(
      site.stream, grid, block, shared_bytes, [=] { std::apply(kernel, *shared); }, site.where);
}

}  // namespace lacuna::gpu

#pragma once
// The one place that chooses between the CPU and the GPU implementation of a kernel.

#include <sstream>

#include "core/device.h"
#include "core/error.h"
#include "core/tensor.h"

/// 1 in a build whose kernels exist in `gpu::` too, else 0.
#ifndef LACUNA_HAS_CUDA
#define LACUNA_HAS_CUDA 0
#endif

/// Declares a kernel in `cpu::` and, with the same signature, in `gpu::`.
#define LACUNA_KERNEL(...)     \
  namespace cpu {              \
  __VA_ARGS__;                 \
  }                            \
  namespace gpu {              \
  __VA_ARGS__;                 \
  }

namespace lacuna {

/// What an argument of a kernel adds to an error; other types may have an overload of their own.
void describe(std::ostream&, const auto&) {}
inline void describe(std::ostream& out, const Tensor& t) {
  if (t.defined()) out << ' ' << t.dtype() << ' ' << t.shape();
}

/// Calls kernel(args...); a GpuError gets the name of the operation and its tensors.
template <class Kernel, class... Args>
void call_on_gpu(const char* name, const Kernel& kernel, const Args&... args) {
  try {
    kernel(args...);
  } catch (const GpuError& error) {
    std::ostringstream tensors;
    (describe(tensors, args), ...);
    throw GpuError(concat(name, ":", tensors.str(), ": ", error.what()));
  }
}

}  // namespace lacuna

/// Calls `cpu::kernel(stream, args...)` or `gpu::kernel(stream, args...)`, whichever belongs to the device `where`, on
/// the calling thread's stream of that device. Throws Error when the build has no backend for it.
#if LACUNA_HAS_CUDA
#define LACUNA_DISPATCH(where, kernel, ...)                                                         \
  do {                                                                                              \
    const ::lacuna::Stream lacuna_stream = ::lacuna::current_stream(where);                         \
    if (lacuna_stream.device.type == ::lacuna::DeviceType::cpu)                                     \
      cpu::kernel(lacuna_stream, __VA_ARGS__);                                                      \
    else                                                                                            \
      ::lacuna::call_on_gpu(                                                                        \
          #kernel, [&](const auto&... args) { gpu::kernel(lacuna_stream, args...); }, __VA_ARGS__); \
  } while (false)
#else
#define LACUNA_DISPATCH(where, kernel, ...) cpu::kernel(::lacuna::current_stream(where), __VA_ARGS__)
#endif

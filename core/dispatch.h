#pragma once
// The one place that chooses between the CPU and the GPU implementation of a kernel.

#include "core/device.h"
#include "core/error.h"

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

/// Calls `cpu::kernel(stream, args...)` or `gpu::kernel(stream, args...)`, whichever belongs to the device `where`, on
/// the calling thread's stream of that device. Throws Error when the build has no backend for it.
#if LACUNA_HAS_CUDA
#define LACUNA_DISPATCH(where, kernel, ...)                               \
  do {                                                                    \
    const ::lacuna::Stream lacuna_stream = ::lacuna::current_stream(where); \
    if (lacuna_stream.device.type == ::lacuna::DeviceType::cpu)           \
      cpu::kernel(lacuna_stream, __VA_ARGS__);                            \
    else                                                                  \
      gpu::kernel(lacuna_stream, __VA_ARGS__);                            \
  } while (false)
#else
#define LACUNA_DISPATCH(where, kernel, ...) cpu::kernel(::lacuna::current_stream(where), __VA_ARGS__)
#endif

#pragma once
// The one place that chooses between the CPU and the GPU implementation of a kernel.

#include "core/device.h"
#include "core/error.h"

/// Calls `cpu::kernel(stream, args...)` or `gpu::kernel(stream, args...)`, whichever belongs to the device `where`, on
/// the calling thread's stream of that device. Throws Error when the build has no backend for it.
#define LACUNA_DISPATCH(where, kernel, ...)                                              \
  do {                                                                                   \
    const ::lacuna::Stream lacuna_stream = ::lacuna::current_stream(where);              \
    ::lacuna::check(lacuna_stream.device.type == ::lacuna::DeviceType::cpu,              \
                    #kernel ": no kernel in this build for ", lacuna_stream.device);     \
    cpu::kernel(lacuna_stream, __VA_ARGS__);                                             \
  } while (false)

#pragma once
// What tensors themselves need of a GPU.

#include "core/tensor.h"

namespace lacuna::gpu {

/// Throws Error, on one line, unless this build has kernels that run on `device`.
void check_has_kernels(Device device);

/// Sets `count` elements of `size` bytes (1, 2, 4 or 8) to the one at `element`, on the host.
void fill(Stream stream, void* data, int64_t count, const void* element, int64_t size);

/// to = from rounded to another floating dtype, both on the stream's device.
void convert(Stream stream, const Tensor& from, const Tensor& to);

/// y = a + b for f32, bf16 or f16; y may be a or b. Errors name `op`.
void add(Stream stream, const char* op, const Tensor& a, const Tensor& b, const Tensor& y);

}  // namespace lacuna::gpu

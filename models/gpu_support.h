#pragma once
// Which models a GPU computes, known before anything is allocated.

#include "core/device.h"
#include "core/dtype.h"
#include "models/config.h"

namespace lacuna {

/// Throws Error, on one line, unless `device` is a GPU that can be used, this build has kernels for it, and they compute
/// forward passes and samples of the model in `dtype`; with `training` backward passes too.
void check_gpu_computes(Device device, const ModelConfig& config, DType dtype, bool training);

/// What makes a GPU compute it much slower than it could, on one line; "" if nothing does.
std::string why_slow_on_gpu(const ModelConfig& config, DType dtype);

}  // namespace lacuna

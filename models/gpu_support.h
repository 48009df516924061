#pragma once
// Which models a GPU computes, known before anything is allocated.

#include "core/device.h"
#include "core/dtype.h"
#include "models/config.h"

namespace lacuna {

/// Throws Error, on one line, unless `device` is a GPU that can be used, this build has kernels for it, and they compute
/// forward passes and samples of the model in `dtype`; with `training` backward passes too.
void check_gpu_computes(Device device, const ModelConfig& config, DType dtype, bool training);

}  // namespace lacuna

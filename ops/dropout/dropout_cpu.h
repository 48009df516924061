#pragma once
// The kernel of dropout for a part of a batch: what operations that do more with that part call.

#include "ops/dropout/dropout_kernels.h"

namespace lacuna::cpu {

/// y[e] = residual[e] + dropout(x)[e] for the elements [begin, end) of a batch of samples of `size` elements each,
/// numbered row-major over the batch; `residual` may be null: dropout alone.
void dropout_range(const float* x, const float* residual, int64_t begin, int64_t end, int64_t size,
                   const DropoutMask& mask, float* y);
void dropout_range(const double* x, const double* residual, int64_t begin, int64_t end, int64_t size,
                   const DropoutMask& mask, double* y);

}  // namespace lacuna::cpu

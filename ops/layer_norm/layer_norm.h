#pragma once
// Layer normalization.

#include "autograd/variable.h"

namespace lacuna {

/// Normalizes each row of x, then scales and shifts it.
///
///   y = gain * (x - mean) / sqrt(var + eps) + bias       mean and var over the last dimension
///
///   x           [..., d_model]   f32 or f64; statistics in the same dtype, by two passes
///   gain, bias  [d_model]        same dtype and device as x
///   y           [..., d_model]
///
/// Throws Error when shapes, dtypes or devices disagree.
/// Source: Ba et al. 2016; its place before each sublayer is Sec. 5.2.
Variable layer_norm(const Variable& x, const Variable& gain, const Variable& bias, float eps = 1e-5f);

}  // namespace lacuna

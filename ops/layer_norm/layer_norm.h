#pragma once
// Layer normalization.

#include "autograd/variable.h"

namespace lacuna {

/// Normalizes each row of x, then scales and shifts it.
///
///   y = gain * (x - mean) / sqrt(var + eps) + bias       mean and var over the last dimension
///
///   x, y        [..., d_model]   f64, f32, bf16 or f16; statistics in f32 (f64 for f64), by two passes
///   gain, bias  [d_model]        same device and dtype as x; f32 for bf16 and f16
///
/// Throws Error when shapes, dtypes or devices disagree.
/// Source: Ba et al. 2016; its place before each sublayer is Sec. 5.2.
Variable layer_norm(const Variable& x, const Variable& gain, const Variable& bias, float eps = 1e-5f);

}  // namespace lacuna

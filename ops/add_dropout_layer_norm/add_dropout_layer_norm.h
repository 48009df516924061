#pragma once
// A residual sum and its layer normalization as one operation: each tensor crosses memory once in either direction.

#include "autograd/variable.h"
#include "ops/run.h"

namespace lacuna {

/// A residual stream, and its norm for the branch that reads it.
struct SumAndNorm {
  Variable sum, norm;
};

/// Adds a branch to the residual stream, and normalizes the sum.
///
///   sum = residual + dropout(branch)          mask, rate and op as in dropout.h
///   norm = layer_norm(sum)                    as in layer_norm.h
///
///   dresidual = dsum + the gradient of layer_norm for dnorm        dbranch = dropout(dresidual), the same mask
///
///   residual, branch, sum, norm  [batch, ..., d_model]   f64, f32, bf16 or f16
///   gain, bias                   [d_model]               same device and dtype; f32 for bf16 and f16
///
/// Equal to the separate operations: the same bits forward in f32 and f64; bf16 and f16 round the sum once.
/// Throws Error when shapes, dtypes or devices disagree, or when rate or op is out of range.
SumAndNorm add_dropout_layer_norm(const Variable& residual, const Variable& branch, float rate, int64_t op,
                                  const Run& run, const Variable& gain, const Variable& bias, float eps = 1e-5f);

/// The residual stream as it is, and its norm: layer_norm whose backward adds the gradient of the sum on the way.
SumAndNorm residual_layer_norm(const Variable& residual, const Variable& gain, const Variable& bias, float eps = 1e-5f);

}  // namespace lacuna

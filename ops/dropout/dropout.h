#pragma once
// Dropout whose mask is a function of its logical place, never stored.

#include "autograd/variable.h"
#include "ops/run.h"

namespace lacuna {

/// Zeroes each element with probability `rate` and scales the others by 1 / (1 - rate); the identity when
/// `run.training` is false or `rate` is 0.
///
///   x, y  [batch, ...]   f64, f32, bf16 or f16
///   rate  in [0, 1), rounded to a multiple of 2^-16 (the scale uses the rounded rate)
///   op    which dropout of the model this is: 2 * layer + branch
///
/// Row b of the batch is sample run.first_sample + b. Elements of a sample are numbered row-major; element e is dropped
/// when 16-bit word e mod 8 of the Philox block at (run.step, sample, op, group e / 8), low half-words first, is below
/// rate * 2^16. So the mask is the same under recomputation, any batching, thread count and device.
/// Throws Error when rate or op is out of range.
/// Source: Sec. 5.4; Srivastava et al. 2014; Salmon et al. 2011.
Variable dropout(const Variable& x, float rate, int64_t op, const Run& run);

/// y = residual + dropout(x) in one pass. residual is like x; in bf16 and f16 y is rounded once.
Variable add_dropout(const Variable& residual, const Variable& x, float rate, int64_t op, const Run& run);

}  // namespace lacuna

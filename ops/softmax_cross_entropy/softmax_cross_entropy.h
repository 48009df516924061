#pragma once
// The loss.

#include "autograd/variable.h"

namespace lacuna {

/// Mean negative log-likelihood of the targets, in nats: mean over rows of  log sum_c exp(z[c]) - z[target].
///
///   logits   [..., n_vocab]   f64, f32, bf16 or f16
///   targets  [...]            u8, each below n_vocab
///   loss     []               as logits, f32 for bf16 and f16; row losses are summed in f64, in one fixed order
///
/// Softmax and its gradient are fused: forward keeps the log-sum-exp of each row, backward recomputes the rest,
/// in the memory of the logits when nobody else holds them.
/// Throws Error when shapes, dtypes or devices disagree, or a target is out of range.
Variable softmax_cross_entropy(const Variable& logits, const Tensor& targets);

/// The loss of each row, without gradient: [...] of the dtype of a loss.
Tensor cross_entropy_per_row(const Tensor& logits, const Tensor& targets);

}  // namespace lacuna

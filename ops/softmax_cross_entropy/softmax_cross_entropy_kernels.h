#pragma once
#include "core/dispatch.h"
#include "core/tensor.h"

namespace lacuna {

/// logits z [rows, n_vocab], targets [rows] u8; lse [rows] of the logits' dtype (f32 when that has 16 bits),
/// row_loss [rows] f64 in nats.
LACUNA_KERNEL(void softmax_cross_entropy_forward(Stream stream, const Tensor& logits, const Tensor& targets,
                                                 const Tensor& lse, const Tensor& row_loss))

/// dlogits = (softmax(z) - onehot(target)) dloss / rows, with dloss [] the gradient of the mean; dlogits may be logits.
LACUNA_KERNEL(void softmax_cross_entropy_backward(Stream stream, const Tensor& dloss, const Tensor& logits,
                                                  const Tensor& targets, const Tensor& lse, const Tensor& dlogits))

/// mean [] of row_loss, rounded to mean's dtype.
LACUNA_KERNEL(void mean_of_rows(Stream stream, const Tensor& row_loss, const Tensor& mean))

}  // namespace lacuna

#include "ops/softmax_cross_entropy/softmax_cross_entropy.h"

#include "core/dispatch.h"
#include "ops/softmax_cross_entropy/softmax_cross_entropy_kernels.h"
#include "ops/tokens.h"

namespace lacuna {
namespace {

void check_inputs(const char* op, const Tensor& logits, const Tensor& targets) {
  check(logits.rank() >= 1 && logits.dim(-1) >= 1, op,
        ": logits must have a last dimension n_vocab of at least 1, got ", logits.shape());
  const Shape rows(logits.shape().dims().first(static_cast<size_t>(logits.rank() - 1)));
  check(targets.shape() == rows, op, ": targets must be ", rows, " for logits ", logits.shape(), ", got ",
        targets.shape());
  check(targets.device() == logits.device(), op, ": logits and targets must share a device, got ", logits.device(),
        " and ", targets.device());
  check_tokens(op, "targets", targets, logits.dim(-1));
}

}  // namespace

Variable softmax_cross_entropy(const Variable& logits, const Tensor& targets) {
  check_inputs("softmax_cross_entropy", logits.value(), targets);
  check(targets.numel() >= 1, "softmax_cross_entropy: the mean needs at least one row, got logits ", logits.shape());

  Tensor lse = empty(targets.shape(), accumulation_dtype(logits.dtype()), logits.device());
  Tensor row_loss = empty(targets.shape(), DType::f64, logits.device());
  Tensor loss = empty({}, accumulation_dtype(logits.dtype()), logits.device());
  LACUNA_DISPATCH(logits.device(), softmax_cross_entropy_forward, logits.value(), targets, lse, row_loss);
  LACUNA_DISPATCH(logits.device(), mean_of_rows, row_loss, loss);

  auto backward = [logits = logits.value(), targets, lse](const Tensor& dloss, const Needs&) {
    Tensor dlogits = logits.unshared() ? logits : empty_like(logits);
    LACUNA_DISPATCH(logits.device(), softmax_cross_entropy_backward, dloss, logits, targets, lse, dlogits);
    return Grads{dlogits};
  };
  return record("softmax_cross_entropy", loss, {logits}, backward);
}

Tensor cross_entropy_per_row(const Tensor& logits, const Tensor& targets) {
  check_inputs("cross_entropy_per_row", logits, targets);
  Tensor lse = empty(targets.shape(), accumulation_dtype(logits.dtype()), logits.device());
  Tensor row_loss = empty(targets.shape(), DType::f64, logits.device());
  LACUNA_DISPATCH(logits.device(), softmax_cross_entropy_forward, logits, targets, lse, row_loss);
  return to_dtype(row_loss, lse.dtype());
}

}  // namespace lacuna

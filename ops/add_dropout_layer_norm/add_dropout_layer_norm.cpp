#include "ops/add_dropout_layer_norm/add_dropout_layer_norm.h"

#include "core/dispatch.h"
#include "ops/layer_norm/layer_norm_kernels.h"

namespace lacuna {
namespace {

// `branch` may be undefined: none is added.
SumAndNorm sum_and_norm(const char* op_name, const Variable& residual, const Variable& branch, const DropoutMask& mask,
                        const Variable& gain, const Variable& bias, float eps) {
  check_same_dtype_and_device(op_name, {residual, branch});
  check_parameters(op_name, residual, {gain, bias});
  const Shape& shape = residual.shape();
  check(shape.rank() >= 1 && shape.dim(-1) >= 1, op_name, ": residual must have a last dimension of at least 1, got ",
        shape);
  check(!branch.defined() || branch.shape() == shape, op_name, ": branch must be ", shape, " like residual, got ",
        branch.defined() ? branch.shape() : Shape{});
  const int64_t d_model = shape.dim(-1);
  for (const Variable* v : {&gain, &bias})
    check(v->shape() == Shape{d_model}, op_name, ": gain and bias must be ", Shape{d_model},
          ", the last dimension of residual, got ", v->shape());

  const bool adds = branch.defined();
  Tensor sum = adds ? empty_like(residual.value()) : residual.value();
  Tensor norm = empty_like(sum);
  Tensor mean = empty({sum.numel() / d_model}, accumulation_dtype(sum.dtype()), sum.device());
  Tensor rstd = empty_like(mean);  // 1 / sqrt(var + eps)
  const BranchSum before = adds ? BranchSum{residual.value(), branch.value(), mask} : BranchSum{};
  LACUNA_DISPATCH(sum.device(), layer_norm_forward, before, gain.value(), bias.value(), eps, sum, norm, mean, rstd);

  auto backward = [sum, gain = gain.value(), mean, rstd, mask, adds](const Grads& dys, const Needs& needs) {
    const Tensor &dsum = dys[0], &dnorm = dys[1];
    const bool drops = adds && mask.drops() && needs.wants(1);
    const Tensor dbranch = drops ? empty_like(sum) : Tensor();
    if (!dnorm.defined()) {  // nobody read the norm
      if (drops) LACUNA_DISPATCH(sum.device(), dropout, dsum, Tensor(), mask, dbranch);
      return Grads{dsum, drops ? dbranch : dsum, {}, {}};
    }
    Tensor dx = empty_like(sum), dgain = empty_like(gain), dbias = empty_like(gain);
    const BranchGradients beside{dsum, dbranch, mask};
    LACUNA_DISPATCH(sum.device(), layer_norm_backward, dnorm, sum, gain, mean, rstd, beside, dx, dgain, dbias);
    return Grads{dx, drops ? dbranch : dx, dgain, dbias};
  };
  const std::vector<Variable> results = record_several(op_name, {sum, norm}, {residual, branch, gain, bias}, backward);
  return {results[0], results[1]};
}

}  // namespace

SumAndNorm add_dropout_layer_norm(const Variable& residual, const Variable& branch, float rate, int64_t op,
                                  const Run& run, const Variable& gain, const Variable& bias, float eps) {
  check(branch.defined(), "add_dropout_layer_norm: needs a branch");
  check(residual.shape().rank() >= 2, "add_dropout_layer_norm: residual must be [batch, ..., d_model], got ",
        residual.shape());
  return sum_and_norm("add_dropout_layer_norm", residual, branch, dropout_mask(rate, op, run), gain, bias, eps);
}

SumAndNorm residual_layer_norm(const Variable& residual, const Variable& gain, const Variable& bias, float eps) {
  return sum_and_norm("residual_layer_norm", residual, {}, {}, gain, bias, eps);
}

}  // namespace lacuna

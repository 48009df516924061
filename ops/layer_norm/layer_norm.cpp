#include "ops/layer_norm/layer_norm.h"

#include "core/dispatch.h"
#include "ops/layer_norm/layer_norm_kernels.h"

namespace lacuna {

Variable layer_norm(const Variable& x, const Variable& gain, const Variable& bias, float eps) {
  check_parameters("layer_norm", x, {gain, bias});
  check(x.shape().rank() >= 1 && x.dim(-1) >= 1, "layer_norm: x must have a last dimension of at least 1, got ",
        x.shape());
  const int64_t d_model = x.dim(-1), rows = x.numel() / d_model;
  for (const Variable* v : {&gain, &bias})
    check(v->shape() == Shape{d_model}, "layer_norm: gain and bias must be ", Shape{d_model},
          ", the last dimension of x, got ", v->shape());

  Tensor y = empty_like(x.value());
  Tensor mean = empty({rows}, accumulation_dtype(x.dtype()), x.device());
  Tensor rstd = empty_like(mean);  // 1 / sqrt(var + eps)
  LACUNA_DISPATCH(x.device(), layer_norm_forward, BranchSum{}, gain.value(), bias.value(), eps, x.value(), y, mean,
                  rstd);

  auto backward = [x = x.value(), gain = gain.value(), mean, rstd](const Tensor& dy, const Needs&) {
    Tensor dx = empty_like(x), dgain = empty_like(gain), dbias = empty_like(gain);
    LACUNA_DISPATCH(x.device(), layer_norm_backward, dy, x, gain, mean, rstd, BranchGradients{}, dx, dgain, dbias);
    return Grads{dx, dgain, dbias};
  };
  return record("layer_norm", y, {x, gain, bias}, backward);
}

}  // namespace lacuna

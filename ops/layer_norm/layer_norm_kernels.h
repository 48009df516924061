#pragma once
#include "core/dispatch.h"
#include "core/tensor.h"

namespace lacuna {

/// x, y [..., d_model]; gain, bias [d_model]; mean, rstd [rows], rstd = 1 / sqrt(var + eps).
LACUNA_KERNEL(void layer_norm_forward(Stream stream, const Tensor& x, const Tensor& gain, const Tensor& bias, float eps,
                                      const Tensor& y, const Tensor& mean, const Tensor& rstd))
LACUNA_KERNEL(void layer_norm_backward(Stream stream, const Tensor& dy, const Tensor& x, const Tensor& gain,
                                       const Tensor& mean, const Tensor& rstd, const Tensor& dx, const Tensor& dgain,
                                       const Tensor& dbias))

}  // namespace lacuna

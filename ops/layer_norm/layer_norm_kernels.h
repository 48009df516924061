#pragma once
#include "core/dispatch.h"
#include "core/tensor.h"
#include "ops/dropout/dropout_kernels.h"

namespace lacuna {

/// x before its norm: residual + dropout(branch), written by forward; undefined by default, then x is given.
struct BranchSum {
  Tensor residual = {}, branch = {};
  DropoutMask mask = {};
};

/// What backward does beside: dx += dx_beside, the gradient from x's other readers, and then dbranch = dropout(dx).
/// Either may be undefined: left out.
struct BranchGradients {
  Tensor dx_beside = {}, dbranch = {};
  DropoutMask mask = {};
};

/// x, y [..., d_model]; gain, bias [d_model]; mean, rstd [rows], rstd = 1 / sqrt(var + eps).
LACUNA_KERNEL(void layer_norm_forward(Stream stream, const BranchSum& sum, const Tensor& gain, const Tensor& bias,
                                      float eps, const Tensor& x, const Tensor& y, const Tensor& mean,
                                      const Tensor& rstd))
LACUNA_KERNEL(void layer_norm_backward(Stream stream, const Tensor& dy, const Tensor& x, const Tensor& gain,
                                       const Tensor& mean, const Tensor& rstd, const BranchGradients& beside,
                                       const Tensor& dx, const Tensor& dgain, const Tensor& dbias))

namespace gpu {

/// Throws Error unless a block of the GPU has the shared memory for layer_norm_backward of rows of d_model.
void check_layer_norm_backward(Device device, int64_t d_model);

}  // namespace gpu
}  // namespace lacuna

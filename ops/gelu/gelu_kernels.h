#pragma once
#include "core/dispatch.h"
#include "core/tensor.h"

namespace lacuna {

LACUNA_KERNEL(void gelu_forward(Stream stream, const Tensor& x, const Tensor& y))
LACUNA_KERNEL(void gelu_backward(Stream stream, const Tensor& dy, const Tensor& x, const Tensor& dx))

}  // namespace lacuna

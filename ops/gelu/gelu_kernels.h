#pragma once
#include "core/tensor.h"

namespace lacuna::cpu {

void gelu_forward(Stream stream, const Tensor& x, const Tensor& y);
void gelu_backward(Stream stream, const Tensor& dy, const Tensor& x, const Tensor& dx);

}  // namespace lacuna::cpu

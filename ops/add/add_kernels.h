#pragma once
#include "core/tensor.h"

namespace lacuna::cpu {

void add(Stream stream, const Tensor& a, const Tensor& b, const Tensor& y);

}  // namespace lacuna::cpu

#pragma once
// The smallest operations with which autograd itself can be tested.

#include <cmath>

#include "autograd/variable.h"

namespace lacuna::toy {

inline Tensor map(const Tensor& a, const Tensor& b, double (*f)(double, double)) {
  const Tensor y = empty_like(a);
  for (int64_t i = 0; i < a.numel(); ++i) y.data<double>()[i] = f(a.data<double>()[i], b.data<double>()[i]);
  return y;
}

inline double product(double a, double b) { return a * b; }
inline double sum(double a, double b) { return a + b; }

inline Variable multiply(const Variable& a, const Variable& b) {
  auto backward = [a = a.value(), b = b.value()](const Tensor& dy, const Needs& needs) {
    return Grads{needs.wants(0) ? map(dy, b, product) : Tensor(), needs.wants(1) ? map(dy, a, product) : Tensor()};
  };
  return record("multiply", map(a.value(), b.value(), product), {a, b}, backward);
}

/// Both gradients are the same tensor, as they are in ops/add.
inline Variable add(const Variable& a, const Variable& b) {
  auto backward = [](const Tensor& dy, const Needs&) { return Grads{dy, dy}; };
  return record("add", map(a.value(), b.value(), sum), {a, b}, backward);
}

inline Variable leaf(const std::vector<double>& elements) {
  return Variable(from_vector(elements, Shape{static_cast<int64_t>(elements.size())}), true);
}

}  // namespace lacuna::toy

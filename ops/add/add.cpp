#include "ops/add/add.h"

namespace lacuna {

Variable add(const Variable& a, const Variable& b) {
  check_same_dtype_and_device("add", {a, b});
  check(is_floating(a.dtype()), "add: dtype must be floating, got ", a.dtype());
  check(a.shape() == b.shape(), "add: a and b must have one shape, got ", a.shape(), " and ", b.shape());
  const auto backward = [](const Tensor& dy, const Needs&) { return Grads{dy, dy}; };
  return record("add", sum_of(a.value(), b.value()), {a, b}, backward);
}

}  // namespace lacuna

#include "ops/add/add.h"

#include "core/dispatch.h"
#include "ops/add/add_kernels.h"

namespace lacuna {

Variable add(const Variable& a, const Variable& b) {
  check_same_dtype_and_device("add", {a, b});
  check(a.shape() == b.shape(), "add: a and b must have one shape, got ", a.shape(), " and ", b.shape());

  Tensor y = empty_like(a.value());
  LACUNA_DISPATCH(a.device(), add, a.value(), b.value(), y);

  return record("add", y, {a, b}, [](const Tensor& dy, const Needs&) { return Grads{dy, dy}; });
}

}  // namespace lacuna

#include "ops/gelu/gelu.h"

#include "core/dispatch.h"
#include "ops/gelu/gelu_kernels.h"

namespace lacuna {

Variable gelu(const Variable& x) {
  Tensor y = empty_like(x.value());
  LACUNA_DISPATCH(x.device(), gelu_forward, x.value(), y);

  auto backward = [x = x.value()](const Tensor& dy, const Needs&) {
    Tensor dx = empty_like(x);
    LACUNA_DISPATCH(x.device(), gelu_backward, dy, x, dx);
    return Grads{dx};
  };
  return record("gelu", y, {x}, backward);
}

}  // namespace lacuna

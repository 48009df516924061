#include "optim/clip.h"

#include <algorithm>
#include <cmath>

#include "core/dispatch.h"
#include "optim/kernels.h"

namespace lacuna {

Tensor gradient_sum_of_squares(const Parameters& parameters) {
  const Tensor sum = empty({1}, DType::f64, parameters.gradients().device());
  LACUNA_DISPATCH(sum.device(), sum_of_squares, parameters.gradients(), sum);
  return sum;
}

double global_gradient_norm(const Parameters& parameters) {
  return std::sqrt(item(gradient_sum_of_squares(parameters)));
}

double clip_scale(double norm, double max_norm) {
  check(max_norm > 0.0, "clip_scale: max_norm must be above 0, got ", max_norm);
  check(std::isfinite(norm), "clip_scale: the norm of the gradient must be finite, got ", norm);
  return max_norm / std::max(norm, max_norm);
}

}  // namespace lacuna

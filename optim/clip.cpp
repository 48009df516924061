#include "optim/clip.h"

#include <algorithm>
#include <cmath>

#include "core/dispatch.h"
#include "optim/kernels.h"

namespace lacuna {

double global_gradient_norm(const Parameters& parameters) {
  double sum = 0.0;
  LACUNA_DISPATCH(parameters.gradients().device(), sum_of_squares, parameters.gradients(), sum);
  return std::sqrt(sum);
}

double clip_scale(double norm, double max_norm) {
  check(max_norm > 0.0, "clip_scale: max_norm must be above 0, got ", max_norm);
  check(std::isfinite(norm), "clip_scale: the norm of the gradient must be finite, got ", norm);
  return max_norm / std::max(norm, max_norm);
}

}  // namespace lacuna

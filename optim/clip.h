#pragma once
// Gradient clipping by global norm.

#include "autograd/parameters.h"

namespace lacuna {

/// The sum of squares of all gradients, f64 [1] on their device, in one fixed order. Enqueued on a GPU.
Tensor gradient_sum_of_squares(const Parameters& parameters);

/// sqrt of the sum of squares of all gradients, accumulated in f64 in one fixed order for any number of threads.
double global_gradient_norm(const Parameters& parameters);

/// The factor that brings a gradient of this norm to at most `max_norm`: max_norm / max(norm, max_norm).
/// Throws Error when max_norm <= 0 or the norm is not finite.
double clip_scale(double norm, double max_norm);

}  // namespace lacuna

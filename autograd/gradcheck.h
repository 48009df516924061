#pragma once
// Gradients against finite differences.

#include <functional>
#include <vector>

#include "autograd/variable.h"

namespace lacuna {

struct GradientCheck {
  double eps = 1e-6;   // step of the central difference
  double rtol = 1e-6;  // |analytic - numeric| <= atol + rtol * max |numeric of that input|
  double atol = 1e-8;
  uint64_t seed = 1;  // of the random projection
};

/// Compares backward() with central differences of `fn` in every element of every input. The output is contracted
/// with random weights: a plain sum would accept wrong gradients of operations whose outputs sum to a constant.
/// Inputs must be f64 leaves that require gradients; `fn` reads them anew each call. Throws Error that names the input,
/// the element, and both values at the first disagreement. Cost: 2 calls of `fn` per element.
void expect_gradients(const std::vector<Variable>& inputs, const std::function<Variable()>& fn,
                      const GradientCheck& options = {});

}  // namespace lacuna

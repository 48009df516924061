#pragma once
// Recomputation in backward (Sec. 5.4 of the paper; Chen et al. 2016).

#include <functional>
#include <vector>

#include "autograd/variable.h"

namespace lacuna {

/// `fn(inputs)`, keeping only the inputs and the result: backward runs `fn` again, with gradients enabled, and
/// differentiates that. `fn` must compute the same value both times; random operations do, because their numbers
/// are addressed by a logical counter (core/rng.h). Parameters that `fn` captures receive their gradients too, as
/// long as gradients are enabled.
Variable checkpoint(std::function<Variable(const std::vector<Variable>&)> fn, std::vector<Variable> inputs);

/// With one input.
Variable checkpoint(std::function<Variable(const Variable&)> fn, const Variable& input);

}  // namespace lacuna

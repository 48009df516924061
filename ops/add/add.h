#pragma once
// Sums.

#include "autograd/variable.h"

namespace lacuna {

/// y = a + b, element by element; a, b and y have one shape and floating dtype. bf16 and f16 sums are f32, rounded
/// once. Throws Error otherwise.
Variable add(const Variable& a, const Variable& b);
inline Variable operator+(const Variable& a, const Variable& b) { return add(a, b); }

}  // namespace lacuna

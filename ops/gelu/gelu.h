#pragma once
// The activation of the feed-forward layers.

#include "autograd/variable.h"

namespace lacuna {

/// y = x * sigmoid(1.702 x), element by element.
///
///   x, y  any shape, f64, f32, bf16 or f16; computed in f32 or f64
///
/// Throws Error for another dtype.
/// Source: Sec. 5.2, after Hendrycks & Gimpel 2016.
Variable gelu(const Variable& x);

}  // namespace lacuna

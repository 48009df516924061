#pragma once
// Drawing tokens from logits.

#include "core/rng.h"
#include "core/tensor.h"

namespace lacuna {

/// Draws a token of every row from softmax(logits / temperature): the one at which the cumulative distribution, summed
/// in f64 in the order of the tokens, passes rng.uniform({.sample = row}, t). At temperature 0 the likeliest token, the
/// first of equals. Sequence s depends on row s alone.
///
///   logits    [rows, n]       f32 or f64, n <= 256; f32 on a GPU
///   position  [1]             i64: t + 1, positions done
///   prompt    [m]             u8; column t is prompt[t] instead where t < m. May be empty
///   tokens    [rows, length]  u8; column t is written
///   previous  [rows]          u8; the same tokens
///   finite    [rows]          u8; becomes 0 where a logit is not finite
void draw_tokens(const Tensor& logits, double temperature, const Rng& rng, const Tensor& position, const Tensor& prompt,
                 const Tensor& tokens, const Tensor& previous, const Tensor& finite);

}  // namespace lacuna

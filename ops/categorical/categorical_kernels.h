#pragma once
#include "core/dispatch.h"
#include "ops/categorical/categorical.h"

namespace lacuna {

LACUNA_KERNEL(void draw_tokens(Stream stream, const Tensor& logits, double temperature, const Rng& rng,
                               const Tensor& position, const Tensor& prompt, const Tensor& tokens,
                               const Tensor& previous, const Tensor& finite))

}  // namespace lacuna

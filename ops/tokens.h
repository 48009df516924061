#pragma once
// Checks of byte tokens.

#include <cstdint>

#include "core/tensor.h"

namespace lacuna {

/// Throws Error that names `op`, the place and the value of the first token that is not below `n_vocab`, or says that
/// `tokens` are not u8. Values on a GPU are not looked at, which would wait for them: there a token out of range makes a
/// loss that is not a number.
void check_tokens(const char* op, const char* name, const Tensor& tokens, int64_t n_vocab);

}  // namespace lacuna

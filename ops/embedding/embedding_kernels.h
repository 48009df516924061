#pragma once
#include <vector>

#include "core/dispatch.h"
#include "core/tensor.h"

namespace lacuna {

LACUNA_KERNEL(void embedding_forward(Stream stream, const Tensor& tokens, const Tensor& token,
                                     const std::vector<Tensor>& position, const Tensor& start, const Tensor& h))

LACUNA_KERNEL(void embedding_at(Stream stream, const Tensor& previous, const Tensor& position, const Tensor& token,
                                const std::vector<Tensor>& tables, const Tensor& start, const Tensor& h))

/// Adds to the gradients that are defined. `extents` are those of the position tables.
LACUNA_KERNEL(void embedding_backward(Stream stream, const Tensor& dh, const Tensor& tokens,
                                      const std::vector<int64_t>& extents, const Tensor& dtoken,
                                      const std::vector<Tensor>& dposition, const Tensor& dstart))

}  // namespace lacuna

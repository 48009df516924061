#pragma once
// The kernels behind DecodeCache, one set per device. k_rows and v_rows [batch, rows, d_qk or d_v] are its tensors,
// `heads` its stores, and `position`, i64 [1], is read when the kernel runs.

#include <vector>

#include "core/dispatch.h"
#include "ops/sparse_attention/decode.h"

namespace lacuna {

using DecodeStores = std::vector<std::vector<DecodeCache::Store>>;

/// o [batch, n_heads * d_v] of the query q [batch, n_heads * d_qk] at `position`, below n.
LACUNA_KERNEL(void attention_decode(Stream stream, const TensorColumns& q, const Tensor& k_rows, const Tensor& v_rows,
                                    const Tensor& position, int64_t n, const DecodeStores& heads, const Tensor& o))

/// Copies x [batch, n_heads * width], keys or values of `position`, below n, to its rows [batch, rows, width].
LACUNA_KERNEL(void store_position(Stream stream, const TensorColumns& x, const Tensor& position, int64_t n,
                                  const DecodeStores& heads, const Tensor& rows))

LACUNA_KERNEL(void advance(Stream stream, const Tensor& position))

}  // namespace lacuna

#pragma once
// Attention of one new position over cached keys and values, for sampling.

#include "core/tensor.h"
#include "ops/sparse_attention/pattern.h"

namespace lacuna {

/// Row `position` of sparse_attention: the output of the query there over the keys cached so far.
///
///   q        [batch, n_heads * d_qk]          f32 or f64
///   k_cache  [batch, n_ctx, n_heads * d_qk]   positions 0..position are filled
///   v_cache  [batch, n_ctx, n_heads * d_v]
///   returns  [batch, n_heads * d_v]
///
/// Visits only the keys of the pattern. Errors as in sparse_attention.
Tensor sparse_attention_decode(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, int64_t position,
                               const LayerPattern& pattern, int64_t n_heads);

}  // namespace lacuna

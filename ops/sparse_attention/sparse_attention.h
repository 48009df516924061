#pragma once
// Attention under a sparse pattern.

#include "autograd/variable.h"
#include "ops/sparse_attention/pattern.h"

namespace lacuna {

/// Each head: o_i = sum_j softmax_j(q_i . k_j / sqrt(d_qk)) v_j over the keys j that the pattern gives query i.
///
///   q, k  [batch, n_ctx, n_heads * d_qk]   f32, bf16, f16 or f64
///   v, o  [batch, n_ctx, n_heads * d_v]    same dtype and device; d_v may differ from d_qk
///
/// n_ctx is any positive number. A query without keys gets o = 0 and gradients of zero. Only tiles that hold a pair of
/// the pattern are computed, so the cost is that of the pattern; memory is O(n_ctx). The same bits in every run, for
/// any number of threads.
///
/// bf16 and f16 are widened to f32 as they are read; scores, softmax and all sums are f32 (o of a merged pattern and
/// the gradients in f32 workspace of their size), and o and each gradient are rounded once, when they are stored. f64
/// is computed in f64 throughout, query by query.
///
/// Throws Error when shapes, dtypes or devices disagree, UsageError for an invalid pattern.
///
/// Source: Sec. 4.2, 4.3, 5.1, 5.5 of the paper; Dao et al. 2022 for the recomputed backward.
Variable sparse_attention(const Variable& q, const Variable& k, const Variable& v, const LayerPattern& pattern,
                          int64_t n_heads);

/// The same of q, k and v side by side, as one product makes them: qkv [batch, n_ctx, n_heads * (2 d_qk + d_v)] has all
/// columns of q, then those of k, then those of v. They are read, and their gradients written, where they lie.
Variable sparse_attention(const Variable& qkv, int64_t d_qk, const LayerPattern& pattern, int64_t n_heads);

}  // namespace lacuna

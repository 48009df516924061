#pragma once
// The kernels behind sparse_attention, one set per device.

#include <cstdint>
#include <ostream>
#include <vector>

#include "core/device.h"
#include "core/tensor.h"
#include "ops/sparse_attention/parts.h"
#include "ops/sparse_attention/tensor_columns.h"

namespace lacuna {

/// Sizes of one call, and what each head attends to.
struct AttentionProblem {
  int64_t batch = 0, n = 0, n_heads = 0, d_qk = 0, d_v = 0;
  std::vector<std::vector<Part>> heads;  // [n_heads]
};

inline void describe(std::ostream& out, const AttentionProblem& p) {
  out << " batch " << p.batch << ", n " << p.n << ", heads " << p.n_heads << ", widths " << p.d_qk << " and " << p.d_v;
}

/// What backward reads: the inputs, and from forward the output and the log-sum-exp of each row's scores.
struct AttentionSaved {
  TensorColumns q, k, v;  // [batch, n, n_heads * d_qk] and [batch, n, n_heads * d_v]
  Tensor o, lse;          // [batch, n, n_heads * d_v], [batch, n_heads, n]; lse is f64 when q is and otherwise f32
};

/// In tensors of their own, or all the columns of one.
struct AttentionGrads {
  TensorColumns dq, dk, dv;
};

namespace cpu {

/// Writes o and lse = log sum_j exp(q . k_j / sqrt(d_qk)), with o = 0 and lse = -inf for a row without keys.
void attention_forward(Stream stream, const AttentionProblem& problem, const AttentionSaved& saved);

/// Writes the gradients in q, k and v from the gradient d_o in o.
void attention_backward(Stream stream, const AttentionProblem& problem, const AttentionSaved& saved, const Tensor& d_o,
                        const AttentionGrads& grads);

}  // namespace cpu

namespace gpu {

/// Whether tensor cores compute heads of these widths in 16 bits; else a warp computes one row.
bool fits_tensor_cores(int64_t d_qk, int64_t d_v);

/// Throws Error unless the two below compute such heads; reads no batch.
void check_attention(const AttentionProblem& problem);

/// As on the CPU, with o, dq, dk and dv rounded to their dtype once for every run of parts that one launch computes.
void attention_forward(Stream stream, const AttentionProblem& problem, const AttentionSaved& saved);
void attention_backward(Stream stream, const AttentionProblem& problem, const AttentionSaved& saved, const Tensor& d_o,
                        const AttentionGrads& grads);

}  // namespace gpu
}  // namespace lacuna

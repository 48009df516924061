#include "ops/sparse_attention/sparse_attention.h"

#include "core/dispatch.h"
#include "ops/sparse_attention/kernels.h"

namespace lacuna {
namespace {

constexpr const char* kOp = "sparse_attention";

void check_floating(const Variable& x) {
  check(is_floating(x.dtype()), kOp, ": q, k and v must be f32, bf16, f16 or f64, got ", x.dtype());
}

AttentionProblem problem_of(const Variable& x, int64_t n_heads, int64_t d_qk, int64_t d_v,
                            const LayerPattern& pattern) {
  AttentionProblem problem{x.dim(0), x.dim(1), n_heads, d_qk, d_v, {}};
  for (int64_t h = 0; h < n_heads; ++h) problem.heads.push_back(parts_of(pattern.for_head(h)));
  return problem;
}

AttentionProblem check_arguments(const Variable& q, const Variable& k, const Variable& v, const LayerPattern& pattern,
                                 int64_t n_heads) {
  validate(AttentionPattern{{pattern}}, n_heads);
  check_same_dtype_and_device(kOp, {q, k, v});
  check_floating(q);
  check(q.shape().rank() == 3, kOp, ": q must be [batch, n_ctx, n_heads * d_qk], got ", q.shape());
  check(k.shape() == q.shape(), kOp, ": k must have the shape of q, ", q.shape(), ", got ", k.shape());
  check(v.shape().rank() == 3 && v.dim(0) == q.dim(0) && v.dim(1) == q.dim(1), kOp,
        ": v must be [batch, n_ctx, n_heads * d_v] with the batch and n_ctx of q, ", q.shape(), ", got ", v.shape());
  for (const auto& [name, x] : {std::pair("q and k", &q), std::pair("v", &v)})
    check(x->dim(2) > 0 && x->dim(2) % n_heads == 0, kOp, ": the last dimension of ", name,
          " must be a positive multiple of n_heads = ", n_heads, ", got ", x->shape());
  return problem_of(q, n_heads, q.dim(2) / n_heads, v.dim(2) / n_heads, pattern);
}

AttentionProblem check_arguments(const Variable& qkv, int64_t d_qk, const LayerPattern& pattern, int64_t n_heads) {
  validate(AttentionPattern{{pattern}}, n_heads);
  check_floating(qkv);
  check(d_qk > 0, kOp, ": d_qk must be at least 1, got ", d_qk);
  check(qkv.shape().rank() == 3 && qkv.dim(2) > 2 * n_heads * d_qk && qkv.dim(2) % n_heads == 0, kOp,
        ": qkv must be [batch, n_ctx, n_heads * (2 d_qk + d_v)] with n_heads = ", n_heads, ", d_qk = ", d_qk,
        " and d_v of 1 or more, got ", qkv.shape());
  return problem_of(qkv, n_heads, d_qk, qkv.dim(2) / n_heads - 2 * d_qk, pattern);
}

AttentionSaved forward(const AttentionProblem& p, const TensorColumns& q, const TensorColumns& k,
                       const TensorColumns& v) {
  const Device device = q.tensor.device();
  const DType lse_dtype = q.dtype() == DType::f64 ? DType::f64 : DType::f32;
  const AttentionSaved saved{q, k, v, empty({p.batch, p.n, p.n_heads * p.d_v}, q.dtype(), device),
                             empty({p.batch, p.n_heads, p.n}, lse_dtype, device)};
  LACUNA_DISPATCH(device, attention_forward, p, saved);
  return saved;
}

}  // namespace

Variable sparse_attention(const Variable& q, const Variable& k, const Variable& v, const LayerPattern& pattern,
                          int64_t n_heads) {
  const AttentionProblem problem = check_arguments(q, k, v, pattern, n_heads);
  const AttentionSaved saved = forward(problem, q.value(), k.value(), v.value());
  return record(kOp, saved.o, {q, k, v}, [problem, saved](const Tensor& d_o, const Needs&) -> Grads {
    const Tensor dq = empty_like(saved.q.tensor), dk = empty_like(saved.k.tensor), dv = empty_like(saved.v.tensor);
    LACUNA_DISPATCH(d_o.device(), attention_backward, problem, saved, d_o, AttentionGrads{dq, dk, dv});
    return {dq, dk, dv};
  });
}

Variable sparse_attention(const Variable& qkv, int64_t d_qk, const LayerPattern& pattern, int64_t n_heads) {
  const AttentionProblem problem = check_arguments(qkv, d_qk, pattern, n_heads);
  const auto [q, k, v] = split_qkv(qkv.value(), n_heads * d_qk);
  const AttentionSaved saved = forward(problem, q, k, v);
  return record(kOp, saved.o, {qkv}, [problem, saved](const Tensor& d_o, const Needs&) -> Grads {
    const Tensor d_qkv = empty_like(saved.q.tensor);
    const auto [dq, dk, dv] = split_qkv(d_qkv, saved.q.width);
    LACUNA_DISPATCH(d_o.device(), attention_backward, problem, saved, d_o, AttentionGrads{dq, dk, dv});
    return {d_qkv};
  });
}

}  // namespace lacuna

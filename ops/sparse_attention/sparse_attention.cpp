#include "ops/sparse_attention/sparse_attention.h"

#include "core/dispatch.h"
#include "ops/sparse_attention/kernels.h"

namespace lacuna {
namespace {

AttentionProblem check_arguments(const Variable& q, const Variable& k, const Variable& v, const LayerPattern& pattern,
                                 int64_t n_heads) {
  const char* const op = "sparse_attention";
  validate(AttentionPattern{{pattern}}, n_heads);
  check_same_dtype_and_device(op, {q, k, v});
  check(is_floating(q.dtype()), op, ": q, k and v must be f32, bf16, f16 or f64, got ", q.dtype());
  check(q.shape().rank() == 3, op, ": q must be [batch, n_ctx, n_heads * d_qk], got ", q.shape());
  check(k.shape() == q.shape(), op, ": k must have the shape of q, ", q.shape(), ", got ", k.shape());
  check(v.shape().rank() == 3 && v.dim(0) == q.dim(0) && v.dim(1) == q.dim(1), op,
        ": v must be [batch, n_ctx, n_heads * d_v] with the batch and n_ctx of q, ", q.shape(), ", got ", v.shape());
  for (const auto& [name, x] : {std::pair("q and k", &q), std::pair("v", &v)})
    check(x->dim(2) > 0 && x->dim(2) % n_heads == 0, op, ": the last dimension of ", name,
          " must be a positive multiple of n_heads = ", n_heads, ", got ", x->shape());
  AttentionProblem problem{q.dim(0), q.dim(1), n_heads, q.dim(2) / n_heads, v.dim(2) / n_heads, {}};
  for (int64_t h = 0; h < n_heads; ++h) problem.heads.push_back(parts_of(pattern.for_head(h)));
  return problem;
}

}  // namespace

Variable sparse_attention(const Variable& q, const Variable& k, const Variable& v, const LayerPattern& pattern,
                          int64_t n_heads) {
  const AttentionProblem problem = check_arguments(q, k, v, pattern, n_heads);
  const DType lse_dtype = q.dtype() == DType::f64 ? DType::f64 : DType::f32;
  const AttentionSaved saved{q.value(), k.value(), v.value(), empty_like(v.value()),
                             empty({problem.batch, n_heads, problem.n}, lse_dtype, q.device())};
  LACUNA_DISPATCH(q.device(), attention_forward, problem, saved);

  return record("sparse_attention", saved.o, {q, k, v}, [problem, saved](const Tensor& d_o, const Needs&) -> Grads {
    const AttentionGrads grads{empty_like(saved.q), empty_like(saved.k), empty_like(saved.v)};
    LACUNA_DISPATCH(d_o.device(), attention_backward, problem, saved, d_o, grads);
    return {grads.dq, grads.dk, grads.dv};
  });
}

}  // namespace lacuna

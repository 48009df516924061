#include "ops/sparse_attention/decode.h"

#include "core/dispatch.h"
#include "ops/sparse_attention/rows_cpu.h"

namespace lacuna {
namespace cpu {

void attention_decode(Stream, const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, int64_t position,
                      const std::vector<std::vector<Part>>& heads, const Tensor& o) {
  const auto n_heads = static_cast<int64_t>(heads.size());
  const int64_t batch = q.dim(0), n_ctx = k_cache.dim(1);
  const int64_t row_qk = k_cache.dim(2), d_qk = row_qk / n_heads, row_v = v_cache.dim(2), d_v = row_v / n_heads;
  dispatch_f32_f64(q.dtype(), "sparse_attention_decode", [&]<class T>() {
#pragma omp parallel for schedule(static)
    for (int64_t bh = 0; bh < batch * n_heads; ++bh) {
      const int64_t b = bh / n_heads, h = bh % n_heads;
      attend_row(heads[static_cast<size_t>(h)], position, q.data<T>() + b * row_qk + h * d_qk,
                 k_cache.data<T>() + b * n_ctx * row_qk + h * d_qk, row_qk, d_qk,
                 v_cache.data<T>() + b * n_ctx * row_v + h * d_v, row_v, d_v, o.data<T>() + b * row_v + h * d_v);
    }
  });
}

}  // namespace cpu

Tensor sparse_attention_decode(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, int64_t position,
                               const LayerPattern& pattern, int64_t n_heads) {
  const char* const op = "sparse_attention_decode";
  validate(AttentionPattern{{pattern}}, n_heads);
  check(q.rank() == 2 && q.dim(1) > 0 && q.dim(1) % n_heads == 0, op,
        ": q must be [batch, n_heads * d_qk] with n_heads = ", n_heads, ", got ", q.shape());
  for (const auto& [name, x] : {std::pair("k_cache", &k_cache), std::pair("v_cache", &v_cache)}) {
    check(x->dtype() == q.dtype(), op, ": ", name, " must have the dtype of q, ", q.dtype(), ", got ", x->dtype());
    check(x->device() == q.device(), op, ": ", name, " must be on the device of q, ", q.device(), ", got ",
          x->device());
    check(x->rank() == 3 && x->dim(0) == q.dim(0) && x->dim(2) > 0 && x->dim(2) % n_heads == 0, op, ": ", name,
          " must be [", q.dim(0), ", n_ctx, n_heads * width] with n_heads = ", n_heads, ", got ", x->shape());
  }
  check(k_cache.dim(2) == q.dim(1), op, ": k_cache must have rows of ", q.dim(1), " as q, got ", k_cache.shape());
  check(v_cache.dim(1) == k_cache.dim(1), op, ": v_cache must have the n_ctx of k_cache, ", k_cache.dim(1), ", got ",
        v_cache.shape());
  check(0 <= position && position < k_cache.dim(1), op, ": position must be in [0, ", k_cache.dim(1), "), got ",
        position);

  std::vector<std::vector<Part>> heads;
  for (int64_t h = 0; h < n_heads; ++h) heads.push_back(parts_of(pattern.for_head(h)));
  const Tensor o = empty({q.dim(0), v_cache.dim(2)}, q.dtype(), q.device());
  LACUNA_DISPATCH(q.device(), attention_decode, q, k_cache, v_cache, position, heads, o);
  return o;
}

}  // namespace lacuna

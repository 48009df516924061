#include "models/gpu_support.h"

#include <set>

#include "core/cuda/runtime.h"
#include "core/dispatch.h"
#if LACUNA_HAS_CUDA
#include "core/cuda/blas.h"
#include "core/cuda/tensor_kernels.h"
#include "ops/layer_norm/layer_norm_kernels.h"
#include "ops/sparse_attention/kernels.h"
#endif

namespace lacuna {

#if LACUNA_HAS_CUDA
namespace {

void check_attention(const ModelConfig& config) {
  std::set<std::string> seen;  // most layers repeat
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    const LayerPattern& pattern = config.attention.for_layer(layer);
    if (!seen.insert(to_string(AttentionPattern{{pattern}})).second) continue;
    AttentionProblem problem{.batch = 1,
                             .n = config.n_ctx,
                             .n_heads = config.n_heads,
                             .d_qk = config.qk_width() / config.n_heads,
                             .d_v = config.d_model / config.n_heads,
                             .heads = {}};
    for (int64_t head = 0; head < config.n_heads; ++head) problem.heads.push_back(parts_of(pattern.for_head(head)));
    gpu::check_attention(problem);
  }
}

}  // namespace

void check_gpu_computes(Device device, const ModelConfig& config, DType dtype, bool training) {
  gpu::check_usable(device);
  gpu::check_has_kernels(device);
  gpu::check_products(device);
  check(dtype != DType::f64, "a GPU computes in f32, bf16 and f16, not in ", dtype);
  check_attention(config);
  if (training) gpu::check_layer_norm_backward(device, config.d_model);
}

std::string why_slow_on_gpu(const ModelConfig& config, DType dtype) {
  const int64_t d_qk = config.qk_width() / config.n_heads, d_v = config.d_model / config.n_heads;
  if (dtype == DType::f32 || gpu::fits_tensor_cores(d_qk, d_v)) return "";
  return concat(
      "attention runs without tensor cores, many times slower: they take heads whose widths are multiples of 8 up "
      "to 128, these have ",
      d_qk, " and ", d_v);
}
#else
void check_gpu_computes(Device device, const ModelConfig&, DType, bool) { gpu::check_usable(device); }
std::string why_slow_on_gpu(const ModelConfig&, DType) { return ""; }
#endif

}  // namespace lacuna

// Attention on a GPU.

#include "core/error.h"
#include "ops/sparse_attention/kernels.h"

namespace lacuna::gpu {

void attention_forward(Stream stream, const AttentionProblem&, const AttentionSaved&) {
  fail("sparse_attention: there are no kernels for ", stream.device, " yet; use --device cpu");
}

void attention_backward(Stream stream, const AttentionProblem&, const AttentionSaved&, const Tensor&,
                        const AttentionGrads&) {
  fail("sparse_attention: there are no kernels for ", stream.device, " yet; use --device cpu");
}

}  // namespace lacuna::gpu

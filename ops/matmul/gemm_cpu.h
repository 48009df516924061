#pragma once
// The f32 matrix product in our own tiles, for instruction sets below AVX-512.

#include <cstdint>

namespace lacuna::cpu {

/// C = alpha op(A) op(B) + beta C, with `gemm`'s meaning of the arguments; where `bias` [n] is not null, it is added to
/// every row. Every element sums its k products in one order, whatever the number of threads.
void tiled_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
                int64_t lda, const float* b, int64_t ldb, float beta, const float* bias, float* c, int64_t ldc);

}  // namespace lacuna::cpu

#pragma once
// Sums over rows: gradients of biases and of layer norm's parameters.

#include <cstdint>

#include "core/dtype.h"

namespace lacuna::cpu {

/// sum[j] = sum over rows r of x[r, j], for x [rows, cols] row-major. One fixed tree of chunks of rows, so the result
/// has the same bits for any number of threads. Sums of 16-bit numbers are f32.
void column_sum(const bf16* x, int64_t rows, int64_t cols, float* sum);
void column_sum(const f16* x, int64_t rows, int64_t cols, float* sum);
void column_sum(const float* x, int64_t rows, int64_t cols, float* sum);
void column_sum(const double* x, int64_t rows, int64_t cols, double* sum);

}  // namespace lacuna::cpu

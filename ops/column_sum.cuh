#pragma once
// Sums over rows on a GPU: gradients of biases and of layer norm's parameters.

#include "core/cuda/kernel.h"

namespace lacuna::gpu {

inline constexpr int kSumRows = 8;         // threads of a block that share a column
inline constexpr int kRowsPerChunk = 256;  // rows that one block sums

// sum [chunks, cols]: row c is the sum of rows [c rows_per_chunk, (c + 1) rows_per_chunk) of x [rows, cols].
//   grid       a block for each 32 columns (x) and each chunk (y)
//   thread     column threadIdx.x; rows threadIdx.y, threadIdx.y + kSumRows, ...; the kSumRows sums then one by one
//   precision  loads T, accumulates f32
template <class T>
__global__ void column_sum_kernel(const T* x, int64_t rows, int64_t cols, int64_t rows_per_chunk, float* sum) {
  LACUNA_SHARED(float, partial, [kSumRows][kWarpSize]);
  const int64_t column = int64_t{blockIdx.x} * kWarpSize + threadIdx.x;
  const int64_t begin = int64_t{blockIdx.y} * rows_per_chunk;
  const int64_t end = begin + rows_per_chunk < rows ? begin + rows_per_chunk : rows;
  float mine = 0.0f;
  if (column < cols)
    for (int64_t r = begin + threadIdx.y; r < end; r += kSumRows) mine += to_float(x[r * cols + column]);
  partial[threadIdx.y][threadIdx.x] = mine;
  __syncthreads();
  if (threadIdx.y != 0 || column >= cols) return;
  float total = 0.0f;
  for (int i = 0; i < kSumRows; ++i) total += partial[i][threadIdx.x];
  sum[int64_t{blockIdx.y} * cols + column] = total;
}

/// sum [cols] f32 = the sum of the rows of x [rows, cols], in one fixed order: chunks of rows, then the chunks.
template <class T>
void column_sum(Stream stream, const T* x, int64_t rows, int64_t cols, float* sum) {
  if (cols == 0) return;
  const int64_t chunks = std::max<int64_t>(1, ceil_div(rows, kRowsPerChunk));
  const dim3 block(kWarpSize, kSumRows);
  const unsigned tiles = grid_of(ceil_div(cols, kWarpSize), "column_sum");
  if (chunks == 1)
    return launch(stream, column_sum_kernel<T>, dim3(tiles), block, 0, x, rows, cols, rows, sum);
  const MemoryScope scope(MemoryCategory::workspace);
  const Tensor partial = empty({chunks, cols}, DType::f32, stream.device);
  launch(stream, column_sum_kernel<T>, dim3(tiles, grid_y_of(chunks, "column_sum")), block, 0, x, rows, cols,
         int64_t{kRowsPerChunk}, data<float>(partial));
  launch(stream, column_sum_kernel<float>, dim3(tiles), block, 0, data<float>(partial), chunks, cols, chunks, sum);
}

}  // namespace lacuna::gpu

#include "ops/column_sum.h"

#include <algorithm>

#include "core/parallel.h"
#include "core/tensor.h"

namespace lacuna::cpu {
namespace {

constexpr int64_t kRowsPerChunk = 64;

// Four rows at a time: the running sums are then read and written once for each four rows, not for each row.
template <class T, class Sum>
void sum_chunk(const T* __restrict__ x, int64_t rows, int64_t cols, Sum* __restrict__ sum) {
  std::fill(sum, sum + cols, Sum{0});
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4, x += 4 * cols)
    for (int64_t j = 0; j < cols; ++j) sum[j] += (x[j] + x[cols + j]) + (x[2 * cols + j] + x[3 * cols + j]);
  for (; r < rows; ++r, x += cols)
    for (int64_t j = 0; j < cols; ++j) sum[j] += x[j];
}

template <class T, class Sum>
void sum_tree(const T* x, int64_t rows, int64_t cols, Sum* sum) {
  const int64_t chunks = (rows + kRowsPerChunk - 1) / kRowsPerChunk;
  if (chunks <= 1) {
    sum_chunk(x, rows, cols, sum);
    return;
  }
  const MemoryScope scope(MemoryCategory::workspace);
  const Tensor partial = empty({chunks, cols}, dtype_of<Sum>);
  Sum* const partial_sums = partial.data<Sum>();
  parallel_for(
      rows,
      [=](int64_t begin, int64_t end) {
        sum_chunk(x + begin * cols, end - begin, cols, partial_sums + begin / kRowsPerChunk * cols);
      },
      kRowsPerChunk);
  sum_tree(partial_sums, chunks, cols, sum);
}

}  // namespace

void column_sum(const bf16* x, int64_t rows, int64_t cols, float* sum) { sum_tree(x, rows, cols, sum); }
void column_sum(const f16* x, int64_t rows, int64_t cols, float* sum) { sum_tree(x, rows, cols, sum); }
void column_sum(const float* x, int64_t rows, int64_t cols, float* sum) { sum_tree(x, rows, cols, sum); }
void column_sum(const double* x, int64_t rows, int64_t cols, double* sum) { sum_tree(x, rows, cols, sum); }

}  // namespace lacuna::cpu

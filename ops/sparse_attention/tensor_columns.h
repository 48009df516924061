#pragma once
// Where q, k and v lie: in tensors of their own, or side by side in one.

#include <array>

#include "core/tensor.h"

namespace lacuna {

/// The columns [first, first + width) of every row of a tensor [..., columns].
struct TensorColumns {
  Tensor tensor;
  int64_t first = 0, width = 0;

  TensorColumns() = default;
  TensorColumns(const Tensor& all) : tensor(all), width(all.dim(-1)) {}  // every tensor is all of its columns
  TensorColumns(const Tensor& t, int64_t first_column, int64_t columns)
      : tensor(t), first(first_column), width(columns) {}

  DType dtype() const { return tensor.dtype(); }
  int64_t row_distance() const { return tensor.dim(-1); }  // elements

  /// The first of the columns in row 0.
  std::byte* raw() const { return tensor.raw() + first * size_of(dtype()); }
  template <class T>
  T* data() const {
    return tensor.data<T>() + first;
  }
};

/// q, k and v of qkv [..., 2 d_q + d_v], which has them side by side: d_q columns of q, as many of k, and those of v.
inline std::array<TensorColumns, 3> split_qkv(const Tensor& qkv, int64_t d_q) {
  return {TensorColumns(qkv, 0, d_q), TensorColumns(qkv, d_q, d_q), TensorColumns(qkv, 2 * d_q, qkv.dim(-1) - 2 * d_q)};
}

}  // namespace lacuna

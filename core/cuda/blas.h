#pragma once
// Matrix products on a GPU: cuBLASLt behind one function.

#include <string>

#include "core/tensor.h"

namespace lacuna::gpu {

/// C = op(A) op(B) + beta C on row-major matrices, op(X) = X or X^T, plus a row that is added to every row of C, or
/// with the sums of op(A) over its columns beside.
struct MatrixProduct {
  bool transpose_a = false, transpose_b = false;
  Tensor a, b;   // as stored, rank 2, of one dtype: f32, bf16 or f16
  double beta = 0.0;
  Tensor c;      // [m, n], of that dtype or f32
  Tensor bias = {};  // [n] of c's dtype, or undefined
  Tensor sums = {};  // [m] of c's dtype, or undefined; written
};

/// Sums in f32 whatever the dtypes, in an order that is a fact of the shape, the GPU and the library (f32 products are
/// not rounded to TF32). The algorithm for a shape is chosen at its first product and kept. Throws Error with `op`, the
/// shape and the reason when the library is missing or refuses.
///
/// Returns false, and has changed nothing, when the library cannot add `bias` or compute `sums` beside this product;
/// the first time for a shape one line on standard error says so.
bool matrix_product(Stream stream, const char* op, const MatrixProduct& product);

/// Throws Error with the reason on one line unless the library is there and starts on this device.
void check_products(Device device);

/// The library in use, "cuBLASLt 13.0.2", and the algorithms chosen so far, a line each. Choices that are taken over before
/// the first product make a resumed run compute what the first one did; those of another library version or GPU are
/// not taken over, and the answer says so ("" if all is well).
std::string matrix_product_choices(Device device);
std::string take_over_choices(Device device, const std::string& choices);

}  // namespace lacuna::gpu

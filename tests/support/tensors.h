#pragma once
// Random tensors, and comparisons of results.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include "autograd/variable.h"
#include "core/rng.h"

namespace lacuna::test {

/// Shapes [rows, cols] around the widths of vectors and the sizes of blocks.
inline const std::vector<Shape> kShapes{{1, 1}, {3, 31}, {4, 32}, {9, 33}, {130, 7}, {17, 1000}};

/// Normal numbers times `scale`, plus `shift`, rounded to `dtype`.
inline Tensor random_tensor(const Shape& shape, DType dtype, uint64_t seed, double scale = 1.0, double shift = 0.0) {
  const Rng rng(seed, RandomPurpose::test);
  std::vector<double> numbers(static_cast<size_t>(shape.numel()));
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = shift + scale * rng.normal({}, static_cast<int64_t>(i));
  return to_dtype(from_vector(numbers, shape), dtype);
}

/// Bytes below `n_vocab`.
inline Tensor random_tokens(const Shape& shape, int64_t n_vocab, uint64_t seed) {
  const Rng rng(seed, RandomPurpose::test);
  std::vector<uint8_t> tokens(static_cast<size_t>(shape.numel()));
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<uint8_t>(rng.uniform({}, static_cast<int64_t>(i)) * static_cast<double>(n_vocab));
  return from_vector(tokens, shape);
}

/// A leaf of random f64 numbers that requires a gradient, for expect_gradients.
inline Variable random_leaf(const Shape& shape, uint64_t seed) {
  return Variable(random_tensor(shape, DType::f64, seed), /*requires_grad=*/true);
}

/// A function of variables, such as an operation.
using Function = std::function<Variable(const std::vector<Variable>&)>;

/// fn(inputs) and the gradients in every input, when `dy` is the gradient in the result.
inline std::vector<Tensor> value_and_gradients(const Function& fn, const std::vector<Tensor>& inputs,
                                               const Tensor& dy) {
  std::vector<Variable> leaves;
  for (const Tensor& input : inputs) leaves.emplace_back(input, /*requires_grad=*/true);
  const Variable y = fn(leaves);
  backward(y, dy);
  std::vector<Tensor> results{y.value()};
  for (const Variable& leaf : leaves) results.push_back(leaf.grad());
  return results;
}

inline std::vector<Tensor> to_dtype(const std::vector<Tensor>& tensors, DType dtype) {
  std::vector<Tensor> converted;
  for (const Tensor& t : tensors) converted.push_back(lacuna::to_dtype(t, dtype));
  return converted;
}

inline double max_abs(const Tensor& t) {
  double largest = 0.0;
  for (const double x : to_vector<double>(to_dtype(t, DType::f64))) largest = std::max(largest, std::abs(x));
  return largest;
}

/// The largest |a - b|; infinite where exactly one of both is NaN or the shapes differ.
inline double max_distance(const Tensor& a, const Tensor& b) {
  if (!(a.shape() == b.shape())) return std::numeric_limits<double>::infinity();
  const std::vector<double> x = to_vector<double>(to_dtype(a, DType::f64)),
                            y = to_vector<double>(to_dtype(b, DType::f64));
  double largest = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(x[i]) != std::isnan(y[i])) return std::numeric_limits<double>::infinity();
    if (!std::isnan(x[i]) && x[i] != y[i]) largest = std::max(largest, std::abs(x[i] - y[i]));
  }
  return largest;
}

/// Every element of `a` within `relative` of b's largest element from b.
inline void expect_close(const std::vector<Tensor>& a, const std::vector<Tensor>& b, double relative) {
  REQUIRE(a.size() == b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    CAPTURE(i);
    CHECK(max_distance(a[i], b[i]) <= relative * max_abs(b[i]));
  }
}

/// `fast` may be twice as far from the f64 answer `exact` as the plain loop in the same dtype, plus one rounding of the
/// largest element, or of `intermediate` if that is larger: the tolerance is derived, not tuned.
inline void expect_as_accurate(const std::vector<Tensor>& fast, const std::vector<Tensor>& plain,
                               const std::vector<Tensor>& exact, double intermediate = 0.0) {
  REQUIRE((fast.size() == plain.size() && fast.size() == exact.size()));
  for (size_t i = 0; i < fast.size(); ++i) {
    CAPTURE(i);
    CAPTURE(concat(exact[i].shape()));
    const double rounding = fast[i].dtype() == DType::f64 ? 0x1p-53 : 0x1p-24;
    CHECK(fast[i].dtype() == plain[i].dtype());
    const double largest = std::max(max_abs(exact[i]), intermediate);
    CHECK(max_distance(fast[i], exact[i]) <= 2.0 * max_distance(plain[i], exact[i]) + rounding * largest);
  }
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.bytes())) == 0;
}

inline void expect_same_bits(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  REQUIRE(a.size() == b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    CAPTURE(i);
    CHECK(same_bits(a[i], b[i]));
  }
}

/// fn() gives the same bits on 1, 2, 3 and 7 threads.
inline void expect_same_bits_on_any_threads(const std::function<std::vector<Tensor>()>& fn) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const std::vector<Tensor> alone = fn();
  for (const int threads : {2, 3, 7}) {
    CAPTURE(threads);
    omp_set_num_threads(threads);
    expect_same_bits(fn(), alone);
  }
  omp_set_num_threads(before);
}

}  // namespace lacuna::test

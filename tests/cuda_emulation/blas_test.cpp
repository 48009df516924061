// core/cuda/blas.cpp, as a GPU has it, on a stand-in for cuBLASLt that does as its documentation says.

#include "core/cuda/blas.h"

#include <dlfcn.h>

#include "core/cuda/runtime.h"
#include "ops/matmul/matmul_kernels.h"
#include "tests/support/expect_error.h"
#include "tests/support/tensors.h"

namespace lacuna::test {
namespace {

int algorithms_chosen() {
  void* const library = ::dlopen("libcublasLt.so." LACUNA_CUBLAS_MAJOR, RTLD_NOW | RTLD_NOLOAD);
  REQUIRE(library != nullptr);
  return reinterpret_cast<int (*)()>(::dlsym(library, "lacuna_algorithms_chosen"))();
}

bool run(const gpu::MatrixProduct& product) {
  synchronize(kCuda);  // the stand-in does not wait for its turn
  return gpu::matrix_product(current_stream(kCuda), "linear", product);
}

/// Element [i, j] of op(X).
double at(const Tensor& x, bool transposed, int64_t i, int64_t j) {
  return to_vector<double>(
      to_dtype(x, DType::f64))[static_cast<size_t>(transposed ? j * x.dim(1) + i : i * x.dim(1) + j)];
}

Tensor there(const Tensor& x) { return to_device(x, kCuda); }

TEST_CASE("matrix_product: every transpose, dtype, bias and sum, row-major") {
  constexpr int64_t m = 3, n = 5, k = 4;
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
    for (const DType result : {dtype, DType::f32})
      for (const bool transpose_a : {false, true})
        for (const bool transpose_b : {false, true})
          for (const char epilogue : {' ', 'b', 's'})
            for (const double beta : {0.0, 1.0}) {
              CAPTURE(concat(dtype, ' ', result, ' ', transpose_a, transpose_b, epilogue, ' ', beta));
              const Tensor a = random_tensor(transpose_a ? Shape{k, m} : Shape{m, k}, dtype, 1),
                           b = random_tensor(transpose_b ? Shape{n, k} : Shape{k, n}, dtype, 2),
                           before = random_tensor({m, n}, result, 3), bias = random_tensor({n}, result, 4);
              const Tensor c = there(clone(before)), sums = full({m}, result, 7.0, kCuda);
              REQUIRE(run({transpose_a, transpose_b, there(a), there(b), beta, c,
                           epilogue == 'b' ? there(bias) : Tensor(), epilogue == 's' ? sums : Tensor()}));

              const double rounding = result == DType::bf16 ? 0x1p-8 : result == DType::f16 ? 0x1p-11 : 0x1p-22;
              for (int64_t i = 0; i < m; ++i) {
                double sum = 0.0;
                for (int64_t t = 0; t < k; ++t) sum += at(a, transpose_a, i, t);
                if (epilogue == 's')
                  CHECK(std::abs(to_vector<double>(to_dtype(sums, DType::f64))[i] - sum) < 4 * rounding);
                for (int64_t j = 0; j < n; ++j) {
                  double exact =
                      beta * at(before, false, i, j) + (epilogue == 'b' ? at(bias.reshape({1, n}), false, 0, j) : 0.0);
                  for (int64_t t = 0; t < k; ++t) exact += at(a, transpose_a, i, t) * at(b, transpose_b, t, j);
                  CHECK(std::abs(at(to_device(c, kCpu), false, i, j) - exact) < 16 * rounding);
                }
              }
            }
}

TEST_CASE("matrix_product: an algorithm is chosen once for a shape and alignment, and can be taken over") {
  const auto multiply = [](int64_t m, int64_t offset) {
    const Tensor a = there(random_tensor({m + 1, 8}, DType::bf16, 1)), b = there(random_tensor({8, 6}, DType::bf16, 2));
    return run({.a = a.slice(offset, m + offset), .b = b, .c = empty({m, 6}, DType::bf16, kCuda)});
  };
  multiply(9, 0);
  const int before = algorithms_chosen();
  multiply(9, 0);
  CHECK(algorithms_chosen() == before);
  multiply(9, 1);  // 16 bytes further on
  CHECK(algorithms_chosen() == before + 1);
  multiply(10, 0);
  CHECK(algorithms_chosen() == before + 2);

  const std::string choices = gpu::matrix_product_choices(kCuda);
  CHECK(choices.starts_with("cuBLASLt 1 on emulated GPU sm_90\n"));
  CHECK(choices.find("\n9 6 8 0 0 ") != std::string::npos);
  CHECK(choices.find("\n10 6 8 0 0 ") != std::string::npos);
  CHECK(gpu::take_over_choices(kCuda, choices) == "");
  CHECK(gpu::matrix_product_choices(kCuda) == choices);
  std::string others = choices;  // every choice another one
  for (size_t end = others.find('\n'); (end = others.find('\n', end + 1)) != std::string::npos;) ++others[end - 1];
  CHECK(gpu::take_over_choices(kCuda, others) == "");
  CHECK(gpu::matrix_product_choices(kCuda) == others);
  multiply(10, 0);
  CHECK(algorithms_chosen() == before + 2);
  CHECK(gpu::take_over_choices(kCuda, "cuBLASLt 2 on emulated GPU sm_90\n").starts_with("matrix products may differ"));
  expect_error("matrix products: a stored choice is damaged: 1 2 3",
               [&] { gpu::take_over_choices(kCuda, choices.substr(0, choices.find('\n') + 1) + "1 2 3\n"); });
}

// It may say so by a status, by choosing no algorithm or, late, by refusing the one that it chose.
TEST_CASE("matrix_product: where the library has no sums nothing is changed, and the layer's gradients are right") {
  for (const auto& [k, n] : {std::array<int64_t, 2>{5, 4}, {7, 4}, {9, 4}, {4, 11}}) {
    CAPTURE(concat(k, ' ', n));
    const Tensor dy = there(full({k, 3}, DType::bf16, 2.0)), x = there(full({k, n}, DType::bf16, 0.5));
    const Tensor c = full({3, n}, DType::f32, 7.0, kCuda), sums = full({3}, DType::f32, 7.0, kCuda);
    for (int time = 0; time < 2; ++time) {
      const int before = time == 0 ? -1 : algorithms_chosen();
      CHECK_FALSE(run({.transpose_a = true, .a = dy, .b = x, .beta = 1.0, .c = c, .sums = sums}));
      if (time == 1) CHECK(algorithms_chosen() == before);
    }
    CHECK(same_bits(to_device(c, kCpu), full({3, n}, DType::f32, 7.0)));
    CHECK(same_bits(to_device(sums, kCpu), full({3}, DType::f32, 7.0)));

    gpu::linear_gradients(current_stream(kCuda), dy, x, 1.0, c, sums);
    CHECK(same_bits(to_device(c, kCpu), full({3, n}, DType::f32, 7.0 + static_cast<double>(k))));
    CHECK(same_bits(to_device(sums, kCpu), full({3}, DType::f32, 2.0 * static_cast<double>(k))));
  }
}

TEST_CASE("matrix_product: where the library adds no bias nothing is changed, and the layer is right") {
  for (const auto& [k, n] : {std::array<int64_t, 2>{5, 4}, {7, 4}, {9, 4}, {4, 11}}) {
    CAPTURE(concat(k, ' ', n));
    const Tensor x = there(full({3, k}, DType::bf16, 2.0)), weight = there(full({n, k}, DType::bf16, 0.5));
    const Tensor y = full({3, n}, DType::bf16, 7.0, kCuda), bias = there(random_tensor({n}, DType::bf16, 1));
    CHECK_FALSE(run({.transpose_b = true, .a = x, .b = weight, .c = y, .bias = bias}));
    CHECK(same_bits(to_device(y, kCpu), full({3, n}, DType::bf16, 7.0)));

    gpu::linear(current_stream(kCuda), x, weight, bias, y);
    const std::vector<double> row = to_vector<double>(to_dtype(to_device(bias, kCpu), DType::f64));
    for (int64_t i = 0; i < 3; ++i)
      for (int64_t j = 0; j < n; ++j)
        CHECK(std::abs(at(to_device(y, kCpu), false, i, j) - static_cast<double>(k) - row[static_cast<size_t>(j)]) <
              0x1p-4);
  }
}

TEST_CASE("matrix_product: no rows give gradients that are 0, or leave a buffer as it is") {
  const Tensor dy = zeros({0, 3}, DType::bf16, kCuda), x = zeros({0, 4}, DType::bf16, kCuda);
  for (const double beta : {0.0, 1.0}) {
    const Tensor c = full({3, 4}, DType::f32, 7.0, kCuda), sums = full({3}, DType::f32, 7.0, kCuda);
    CHECK(run({.transpose_a = true, .a = dy, .b = x, .beta = beta, .c = c, .sums = sums}));
    CHECK(same_bits(to_device(c, kCpu), full({3, 4}, DType::f32, 7.0 * beta)));
    CHECK(same_bits(to_device(sums, kCpu), zeros({3}, DType::f32)));
  }
}

TEST_CASE("matrix_product: what the library refuses is named with op, shape and reason") {
  const auto multiply = [](int64_t n) {
    run({.a = zeros({2, 4}, DType::bf16, kCuda),
         .b = zeros({4, n}, DType::bf16, kCuda),
         .c = zeros({2, n}, DType::bf16, kCuda)});
  };
  expect_error("linear: cuBLASLt has no algorithm for [2, 4] x [4, 13] in bf16", [&] { multiply(13); });
  expect_error("linear: [2, 4] x [4, 17] in bf16: multiplying: CUBLAS_STATUS_EXECUTION_FAILED", [&] { multiply(17); });
  CHECK_NOTHROW(gpu::check_products(kCuda));
}

}  // namespace
}  // namespace lacuna::test

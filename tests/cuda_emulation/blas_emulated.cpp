// The products of core/cuda/blas.h as plain loops, in the order of the stream.

#include "core/cuda/blas.h"
#include "tests/cuda_emulation/runtime_emulated.h"

namespace lacuna::gpu {
namespace {

/// What the library gets of a product: no Tensor, which would keep alive a buffer that is freed too early.
struct Job {
  bool transpose_a, transpose_b;
  int64_t m, n, k;
  float beta;
  const void *a, *b, *bias;
  void *c, *sums;
};

template <class In, class Out>
void multiply(const Job& job) {
  const auto& [transpose_a, transpose_b, m, n, k, beta, pa, pb, pbias, pc, psums] = job;
  const auto *const a = static_cast<const In*>(pa), *const b = static_cast<const In*>(pb);
  const auto* const bias = static_cast<const Out*>(pbias);
  auto* const c = static_cast<Out*>(pc);
  const int64_t a_row = transpose_a ? 1 : k, a_col = transpose_a ? m : 1;
  const int64_t b_row = transpose_b ? 1 : n, b_col = transpose_b ? k : 1;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      float sum = 0.0f;
      for (int64_t t = 0; t < k; ++t)
        sum += static_cast<float>(a[i * a_row + t * a_col]) * static_cast<float>(b[t * b_row + j * b_col]);
      if (beta != 0.0f) sum += beta * static_cast<float>(c[i * n + j]);
      if (bias) sum += static_cast<float>(bias[j]);
      c[i * n + j] = Out(sum);
    }
  auto* const sums = static_cast<Out*>(psums);
  for (int64_t i = 0; sums && i < m; ++i) {
    float sum = 0.0f;
    for (int64_t t = 0; t < k; ++t) sum += static_cast<float>(a[i * a_row + t * a_col]);
    sums[i] = Out(sum);
  }
}

template <class In>
void enqueue(Stream stream, bool f32_result, const Job& job) {
  emulation::enqueue(stream, [=] { f32_result ? multiply<In, float>(job) : multiply<In, In>(job); });
}

}  // namespace

// As the library may refuse sums for some shapes, this refuses them for an odd k.
bool matrix_product(Stream stream, const char* op, const MatrixProduct& p) {
  check(p.a.dtype() == p.b.dtype() && is_floating(p.a.dtype()) && p.a.dtype() != DType::f64, op,
        ": on a GPU matrices must be f32, bf16 or f16 and alike, got ", p.a.dtype(), " and ", p.b.dtype());
  const auto raw_or_null = [](const Tensor& t) { return t.defined() ? t.raw() : nullptr; };
  const int64_t k = p.a.dim(p.transpose_a ? 0 : 1);
  if (p.sums.defined() && k % 2 == 1) return false;
  const Job job{
      p.transpose_a, p.transpose_b,       p.c.dim(0), p.c.dim(1),         k, static_cast<float>(p.beta), p.a.raw(),
      p.b.raw(),     raw_or_null(p.bias), p.c.raw(),  raw_or_null(p.sums)};
  const bool f32_result = p.c.dtype() == DType::f32;
  switch (p.a.dtype()) {
    case DType::bf16: enqueue<bf16>(stream, f32_result, job); break;
    case DType::f16: enqueue<f16>(stream, f32_result, job); break;
    default: enqueue<float>(stream, f32_result, job);
  }
  return true;
}

void check_products(Device) {}
std::string matrix_product_choices(Device) { return "emulated products\n"; }
std::string take_over_choices(Device, const std::string&) { return ""; }

}  // namespace lacuna::gpu

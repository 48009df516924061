#include <algorithm>
#include <unordered_map>

#include <dnnl.hpp>

#include "core/parallel.h"
#include "ops/column_sum.h"
#include "ops/matmul/gemm_cpu.h"
#include "ops/matmul/matmul.h"
#include "ops/matmul/matmul_kernels.h"
#include "ops/widen.h"

namespace lacuna {
namespace {

// The f64 product. One task computes a kTile x kTile tile of C: it packs kDepth columns of op(A) and rows of op(B) at a
// time, as panels of kStrip rows or columns, zero-padded, and multiplies a panel by a panel in registers.
constexpr int64_t kTile = 64, kDepth = 128, kStrip = 4;

/// A matrix as stored, read as op(X).
struct Operand {
  const double* data;
  int64_t row_step, col_step;
  double operator()(int64_t row, int64_t col) const { return data[row * row_step + col * col_step]; }
};

Operand operand(bool transpose, const double* data, int64_t ld) {
  return transpose ? Operand{data, 1, ld} : Operand{data, ld, 1};
}

/// panel [kTile / kStrip, depth, kStrip]: element (strip, k, i) = x(first + strip * kStrip + i, k0 + k), 0 from `end`
/// on.
void pack(const Operand& x, int64_t first, int64_t end, int64_t k0, int64_t depth, double* panel) {
  for (int64_t strip = first; strip < first + kTile; strip += kStrip, panel += depth * kStrip)
    for (int64_t i = 0; i < kStrip; ++i)
      for (int64_t k = 0; k < depth; ++k) panel[k * kStrip + i] = strip + i < end ? x(strip + i, k0 + k) : 0.0;
}

/// sum [kStrip, kStrip], rows kTile apart, += a b for one panel strip of each.
void multiply_strips(const double* __restrict__ a, const double* __restrict__ b, int64_t depth, double* sum) {
  double acc[kStrip][kStrip] = {};
  for (int64_t k = 0; k < depth; ++k, a += kStrip, b += kStrip)
    for (int64_t i = 0; i < kStrip; ++i)
      for (int64_t j = 0; j < kStrip; ++j) acc[i][j] += a[i] * b[j];
  for (int64_t i = 0; i < kStrip; ++i)
    for (int64_t j = 0; j < kStrip; ++j) sum[i * kTile + j] += acc[i][j];
}

// Below this many rows oneDNN's sgemm is faster than its matmul, up to 1.7 times; above, matmul is by up to 1.4 times,
// and adds the bias on the way (Zen 4, AVX-512, 2 threads).
constexpr int64_t kMatmulRows = 16;

/// c = op(a) op(b) + beta c, plus `bias` in every row if it is defined; f32, or bf16 with c in either. oneDNN keeps the
/// code that it generated for each shape.
void onednn_product(bool transpose_a, const Tensor& a, bool transpose_b, const Tensor& b, double beta,
                    const Tensor& bias, const Tensor& c) {
  using dnnl::memory;
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  const auto desc = [](const Tensor& x, bool transpose, int64_t rows, int64_t cols) {
    const memory::data_type dtype = x.dtype() == DType::bf16 ? memory::data_type::bf16 : memory::data_type::f32;
    return memory::desc({rows, cols}, dtype, transpose ? memory::dims{1, rows} : memory::dims{cols, 1});
  };
  const int64_t m = c.dim(0), n = c.dim(1), k = a.dim(transpose_a ? 0 : 1);
  const memory::desc a_desc = desc(a, transpose_a, m, k), b_desc = desc(b, transpose_b, k, n),
                     c_desc = desc(c, false, m, n),
                     bias_desc = bias.defined() ? desc(bias, false, 1, n) : memory::desc();
  dnnl::primitive_attr attributes;
  if (beta != 0.0) {
    dnnl::post_ops sum;
    sum.append_sum(static_cast<float>(beta));
    attributes.set_post_ops(sum);
  }
#if DNNL_VERSION_MAJOR >= 3
  const dnnl::matmul::primitive_desc product(engine, a_desc, b_desc, bias_desc, c_desc, attributes);
#else
  const dnnl::matmul::primitive_desc product({a_desc, b_desc, bias_desc, c_desc}, attributes, engine);
#endif
  std::unordered_map<int, memory> arguments{{DNNL_ARG_SRC, memory(a_desc, engine, a.raw())},
                                            {DNNL_ARG_WEIGHTS, memory(b_desc, engine, b.raw())},
                                            {DNNL_ARG_DST, memory(c_desc, engine, c.raw())}};
  if (bias.defined()) arguments.emplace(DNNL_ARG_BIAS, memory(bias_desc, engine, bias.raw()));
  dnnl::stream stream(engine);
  dnnl::matmul(product).execute(stream, arguments);
  stream.wait();
}

/// Whether the processor multiplies bf16 (AVX-512 BF16, AMX): oneDNN then does so at twice the rate of f32 or more.
bool multiplies_bf16() {
#if defined(__x86_64__)
  static const bool has = dnnl::get_effective_cpu_isa() >= dnnl::cpu_isa::avx512_core_bf16;
  return has;
#else
  return false;
#endif
}

void onednn_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
                 int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  const dnnl_status_t status =
      dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  check(status == dnnl_success, "gemm: oneDNN refused [", m, ", ", k, "] times [", k, ", ", n, "] with row distances ",
        lda, ", ", ldb, ", ", ldc, " (status ", static_cast<int>(status), ")");
}

// Below AVX-512 our own tiles take over from oneDNN, but for a few rows: at the models' shapes they are as fast when
// 256 products are summed, 1.2 times when 1024 are, and up to 1.8 times in A^T B (Zen 3, 2 threads).
bool tiles_are_faster(int64_t rows) {
  static const bool below_avx512 = dnnl::get_effective_cpu_isa() < dnnl::cpu_isa::avx512_core;
  return below_avx512 && rows >= kMatmulRows;
}

}  // namespace

void gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a, int64_t lda,
          const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  if (m == 0 || n == 0) return;
  if (k == 0) {  // oneDNN would leave C as it is
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) c[i * ldc + j] = beta == 0.0f ? 0.0f : beta * c[i * ldc + j];
  } else if (tiles_are_faster(m)) {
    cpu::tiled_gemm(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, nullptr, c, ldc);
  } else {
    onednn_gemm(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  }
}

void gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, double alpha, const double* a,
          int64_t lda, const double* b, int64_t ldb, double beta, double* c, int64_t ldc) {
  const Operand op_a = operand(transpose_a, a, lda), op_b_transposed = operand(!transpose_b, b, ldb);
  const int64_t tiles_m = (m + kTile - 1) / kTile, tiles_n = (n + kTile - 1) / kTile;
  const int64_t tiles = tiles_m * tiles_n;
#pragma omp parallel for schedule(static) if (tiles > 1)
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t i0 = tile / tiles_n * kTile, j0 = tile % tiles_n * kTile;
    double panel_a[kTile * kDepth], panel_b[kTile * kDepth];
    double sum[kTile * kTile] = {};
    for (int64_t k0 = 0; k0 < k; k0 += kDepth) {
      const int64_t depth = std::min(kDepth, k - k0);
      pack(op_a, i0, m, k0, depth, panel_a);
      pack(op_b_transposed, j0, n, k0, depth, panel_b);
      for (int64_t i = 0; i < kTile; i += kStrip)
        for (int64_t j = 0; j < kTile; j += kStrip)
          multiply_strips(panel_a + i * depth, panel_b + j * depth, depth, sum + i * kTile + j);
    }
    for (int64_t i = i0; i < std::min(m, i0 + kTile); ++i)
      for (int64_t j = j0; j < std::min(n, j0 + kTile); ++j) {
        const double product = alpha * sum[(i - i0) * kTile + j - j0];
        c[i * ldc + j] = beta == 0.0 ? product : product + beta * c[i * ldc + j];
      }
  }
}

namespace cpu {
namespace {

// x rounded to `dtype`, which is bf16 or f16: what a product in that dtype reads, or reads in f32.
Tensor rounded(const Tensor& x, DType dtype) {
  const MemoryScope scope(MemoryCategory::workspace);
  return to_dtype(x, dtype);
}
Tensor rounded_in_f32(const Tensor& x, DType dtype) { return widened(rounded(x, dtype)); }

}  // namespace

void matrix_product(Stream stream, bool transpose_a, const Tensor& a, bool transpose_b, const Tensor& b, double beta,
                    const Tensor& c) {
  if (is_16_bit(a.dtype()) || is_16_bit(b.dtype())) {
    const DType dtype = is_16_bit(a.dtype()) ? a.dtype() : b.dtype();
    check(beta == 0.0 || !is_16_bit(c.dtype()), "matmul: cannot add to a product in ", c.dtype());
    if (dtype == DType::bf16 && multiplies_bf16() && a.numel() > 0 && b.numel() > 0)
      return onednn_product(transpose_a, rounded(a, dtype), transpose_b, rounded(b, dtype), beta, {}, c);
    const Tensor wide_a = rounded_in_f32(a, dtype), wide_b = rounded_in_f32(b, dtype);
    if (!is_16_bit(c.dtype())) return matrix_product(stream, transpose_a, wide_a, transpose_b, wide_b, beta, c);
    return write_rounded(
        c, [&](const Tensor& wide) { matrix_product(stream, transpose_a, wide_a, transpose_b, wide_b, 0.0, wide); });
  }
  dispatch_f32_f64(c.dtype(), "matmul", [&]<class T>() {
    const int64_t k = a.dim(transpose_a ? 0 : 1);
    gemm(transpose_a, transpose_b, c.dim(0), c.dim(1), k, T{1}, a.data<T>(), a.dim(1), b.data<T>(), b.dim(1),
         static_cast<T>(beta), c.data<T>(), c.dim(1));
  });
}

void linear(Stream stream, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y) {
  const int64_t rows = y.dim(0), d_in = x.dim(1), d_out = y.dim(1);
  if (x.dtype() == DType::bf16 && multiplies_bf16() && x.numel() > 0 && weight.numel() > 0)
    return onednn_product(false, x, true, rounded(weight, x.dtype()), 0.0,
                          bias.defined() ? rounded(bias, x.dtype()) : Tensor(), y);
  if (is_16_bit(x.dtype()))
    return write_rounded(y, [&](const Tensor& wide) {
      linear(stream, widened(x), rounded_in_f32(weight, x.dtype()),
             bias.defined() ? rounded_in_f32(bias, x.dtype()) : Tensor(), wide);
    });
  if (y.dtype() == DType::f32 && rows >= kMatmulRows && d_in > 0 && d_out > 0) {
    if (tiles_are_faster(rows))
      tiled_gemm(false, true, rows, d_out, d_in, 1.0f, x.data<float>(), d_in, weight.data<float>(), d_in, 0.0f,
                 bias.defined() ? bias.data<float>() : nullptr, y.data<float>(), d_out);
    else
      onednn_product(false, x, true, weight, 0.0, bias, y);
    return;
  }
  if (bias.defined())
    dispatch_f32_f64(y.dtype(), "linear", [&]<class T>() {
      for (int64_t r = 0; r < rows; ++r) std::copy_n(bias.data<T>(), d_out, y.data<T>() + r * d_out);
    });
  matrix_product(stream, false, x, true, weight, bias.defined() ? 1.0 : 0.0, y);
}

// oneDNN's sgemm at d = 256 to 2048 takes as long per row for 4 rows as for 8 or 16, and twice the time of a single row
// (Xeon, AVX-512): the rows go through in groups of 4.
void linear_rows(Stream stream, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y) {
  constexpr int64_t kGroup = 4;
  const int64_t rows = x.dim(0);
  const Tensor x_group = zeros({kGroup, x.dim(1)}, x.dtype()), y_group = empty({kGroup, y.dim(1)}, y.dtype());
  for (int64_t begin = 0; begin < rows; begin += kGroup) {
    const int64_t count = std::min(kGroup, rows - begin);
    if (count == kGroup) {
      linear(stream, x.slice(begin, begin + kGroup), weight, bias, y.slice(begin, begin + kGroup));
      continue;
    }
    copy(x.slice(begin, rows), x_group.slice(0, count));
    linear(stream, x_group, weight, bias, y_group);
    copy(y_group.slice(0, count), y.slice(begin, rows));
  }
}

void linear_gradients(Stream stream, const Tensor& dy, const Tensor& x, double beta, const Tensor& dweight,
                      const Tensor& dbias) {
  if (dweight.defined()) matrix_product(stream, true, dy, false, x, beta, dweight);
  if (!dbias.defined()) return;
  dispatch_floating(dy.dtype(), "linear", [&]<class T>() {
    using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;
    column_sum(dy.data<T>(), dy.dim(0), dy.dim(1), dbias.data<Sum>());
  });
}

}  // namespace cpu
}  // namespace lacuna

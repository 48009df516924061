// The scheme of Goto and van de Geijn 2008. op(B), and A when it is transposed, are packed into panels as narrow as the
// micro-kernel; A as stored is read where it lies. A task computes a tile of C, kDepth of the k products at a time: a
// panel of B stays in the first-level cache, the rows of A in the second, the sums in registers.

#include "ops/matmul/gemm_cpu.h"

#include <algorithm>

// There oneDNN is faster; SSSE3 alone is not worth a copy. Scalable vectors cannot be kept in arrays.
#define HWY_DISABLED_TARGETS \
  (HWY_AVX3 | HWY_AVX3_DL | HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/matmul/gemm_cpu.cpp"
#include <hwy/foreach_target.h>
#include "ops/simd-inl.h"

#include "ops/unroll.h"

#ifndef LACUNA_OPS_MATMUL_GEMM_CPU_ONCE
#define LACUNA_OPS_MATMUL_GEMM_CPU_ONCE
namespace lacuna::cpu {

constexpr int64_t kPanelRows = 6;  // of A, and of C in registers
constexpr int64_t kDepth = 256;    // products summed in registers

/// A as stored, rows `distance` apart, or A^T in panels [depth][kPanelRows], so far apart.
struct LeftOperand {
  const float* data;
  bool packed;
  int64_t distance;

  const float* at(int64_t i, int64_t k) const {
    return packed ? data + i / kPanelRows * distance + k * kPanelRows : data + i * distance + k;
  }
};

/// C = alpha sum + (first: beta C + bias, else C).
struct Update {
  float alpha, beta;
  const float* bias;
  float* c;
  int64_t ldc;
  bool first;
};

struct Tile {
  int64_t row_begin, row_end, col_begin, col_end;
};

}  // namespace lacuna::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace lacuna::cpu::HWY_NAMESPACE {

using Floats = hn::ScalableTag<float>;
using V = hn::Vec<Floats>;
constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(Floats()));
constexpr int64_t kPanelVectors = 2;
constexpr int64_t kPanelCols = kPanelVectors * kLanes;  // of B, and of C in registers

int64_t PanelCols() { return kPanelCols; }

/// Rows [begin, end) of a panel [depth][kPanelCols] of B^T: the transpose of `cols` rows of B, the other columns 0.
void PackTransposed(const float* b, int64_t ldb, int64_t cols, int64_t begin, int64_t end, float* panel) {
  for (int64_t j = 0; j < kPanelCols; ++j)
    for (int64_t k = begin; k < end; ++k) panel[k * kPanelCols + j] = j < cols ? b[j * ldb + k] : 0.0f;
}

/// Row by row, the columns of x [depth][cols] to panels [depth][kPanelCols], `distance` apart, the last filled up with
/// 0.
void PackCols(const float* x, int64_t ldx, int64_t cols, int64_t begin, int64_t end, int64_t distance, float* panels) {
  const Floats d;
  for (int64_t k = begin; k < end; ++k) {
    const float* const from = x + k * ldx;
    float* to = panels + k * kPanelCols;
    int64_t j = 0;
    for (; j + kPanelCols <= cols; j += kPanelCols, to += distance)
      for (int64_t v = 0; v < kPanelCols; v += kLanes) hn::StoreU(hn::LoadU(d, from + j + v), d, to + v);
    if (j == cols) continue;
    for (int64_t c = 0; c < kPanelCols; ++c) to[c] = j + c < cols ? from[j + c] : 0.0f;
  }
}

/// Likewise to panels [depth][kPanelRows].
void PackRows(const float* x, int64_t ldx, int64_t cols, int64_t begin, int64_t end, int64_t distance, float* panels) {
  for (int64_t k = begin; k < end; ++k) {
    const float* const from = x + k * ldx;
    float* to = panels + k * kPanelRows;
    int64_t j = 0;
    for (; j + kPanelRows <= cols; j += kPanelRows, to += distance)
      hwy::CopyBytes<kPanelRows * sizeof(float)>(from + j, to);
    for (; j < cols; ++j) *to++ = from[j];
  }
}

/// The tile of kM rows and `cols` <= kPanelCols columns at C: kPacked says how A lies.
template <int kM, bool kPacked>
HWY_INLINE void MicroKernel(int64_t depth, const float* HWY_RESTRICT a, int64_t lda, const float* HWY_RESTRICT b,
                            int64_t cols, const Update& update, float* HWY_RESTRICT c, const float* HWY_RESTRICT bias) {
  const Floats d;
  const int64_t row = kPacked ? 1 : lda, column = kPacked ? kPanelRows : 1;
  V sum[kM][kPanelVectors];
  LACUNA_UNROLL
  for (int m = 0; m < kM; ++m) {
    LACUNA_UNROLL
    for (int x = 0; x < kPanelVectors; ++x) sum[m][x] = hn::Zero(d);
  }
  for (int64_t k = 0; k < depth; ++k) {
    V bk[kPanelVectors];
    LACUNA_UNROLL
    for (int x = 0; x < kPanelVectors; ++x) bk[x] = hn::LoadU(d, b + k * kPanelCols + x * kLanes);
    LACUNA_UNROLL
    for (int m = 0; m < kM; ++m) {
      const V am = hn::Set(d, a[m * row + k * column]);
      LACUNA_UNROLL
      for (int x = 0; x < kPanelVectors; ++x) sum[m][x] = hn::MulAdd(am, bk[x], sum[m][x]);
    }
  }
  const auto write = [&](int m, auto old_of) HWY_ATTR {
    LACUNA_UNROLL
    for (int x = 0; x < kPanelVectors; ++x) {
      float* const at = c + m * update.ldc + x * kLanes;
      hn::StoreU(hn::MulAdd(hn::Set(d, update.alpha), sum[m][x], old_of(at, x)), d, at);
    }
  };
  if (cols < kPanelCols) {
    float rest[kM][kPanelCols];
    LACUNA_UNROLL
    for (int m = 0; m < kM; ++m) {
      LACUNA_UNROLL
      for (int x = 0; x < kPanelVectors; ++x) hn::StoreU(sum[m][x], d, rest[m] + x * kLanes);
    }
    for (int m = 0; m < kM; ++m)
      for (int64_t j = 0; j < cols; ++j) {
        float* const at = c + m * update.ldc + j;
        const float old =
            !update.first ? *at : (update.beta == 0.0f ? 0.0f : update.beta * *at) + (bias ? bias[j] : 0.0f);
        *at = update.alpha * rest[m][j] + old;
      }
  } else if (!update.first) {
    LACUNA_UNROLL
    for (int m = 0; m < kM; ++m) write(m, [&](const float* at, int) HWY_ATTR { return hn::LoadU(d, at); });
  } else {
    V base[kPanelVectors];
    LACUNA_UNROLL
    for (int x = 0; x < kPanelVectors; ++x) base[x] = bias ? hn::LoadU(d, bias + x * kLanes) : hn::Zero(d);
    LACUNA_UNROLL
    for (int m = 0; m < kM; ++m)
      write(m, [&](const float* at, int x) HWY_ATTR {
        return update.beta == 0.0f ? base[x] : hn::MulAdd(hn::Set(d, update.beta), hn::LoadU(d, at), base[x]);
      });
  }
}

/// MicroKernel of `rows` rows, at most kM.
template <int kM, bool kPacked, class... Args>
HWY_INLINE void RowsKernel(int64_t rows, const Args&... args) {
  if constexpr (kM > 0) {
    if (rows == kM)
      MicroKernel<kM, kPacked>(args...);
    else
      RowsKernel<kM - 1, kPacked>(rows, args...);
  }
}

/// The products of columns [k, k + depth) of A and rows of B in a tile of C. Panels of B are `distance` apart.
void MultiplyTile(const Tile& tile, const LeftOperand& a, const float* b, int64_t distance, int64_t k, int64_t depth,
                  const Update& update) {
  for (int64_t col = tile.col_begin; col < tile.col_end; col += kPanelCols) {
    const int64_t cols = tile.col_end - col < kPanelCols ? tile.col_end - col : kPanelCols;
    const float* const panel = b + col / kPanelCols * distance + k * kPanelCols;
    const float* const bias = update.bias != nullptr ? update.bias + col : nullptr;
    for (int64_t row = tile.row_begin; row < tile.row_end; row += kPanelRows) {
      const int64_t rows = tile.row_end - row < kPanelRows ? tile.row_end - row : kPanelRows;
      float* const c = update.c + row * update.ldc + col;
      if (a.packed)
        RowsKernel<kPanelRows, true>(rows, depth, a.at(row, k), a.distance, panel, cols, update, c, bias);
      else
        RowsKernel<kPanelRows, false>(rows, depth, a.at(row, k), a.distance, panel, cols, update, c, bias);
    }
  }
}

}  // namespace lacuna::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <omp.h>

#include "core/parallel.h"
#include "core/tensor.h"

namespace lacuna::cpu {
namespace {

HWY_EXPORT(PanelCols);
HWY_EXPORT(PackTransposed);
HWY_EXPORT(PackCols);
HWY_EXPORT(PackRows);
HWY_EXPORT(MultiplyTile);

constexpr int64_t kPackedRows = 32;     // of op(B) at once
constexpr int64_t kPadding = 16;        // between panels, whose rows k would else compete for one set of the cache
constexpr int64_t kPackedDepth = 1024;  // of the operands packed at once: 4 MiB for each 1024 columns
constexpr int64_t kTileRows = 96, kTileCols = 256;  // of a task, at most

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

void tiled_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
                int64_t lda, const float* b, int64_t ldb, float beta, const float* bias, float* c, int64_t ldc) {
  const int64_t panel_cols = HWY_DYNAMIC_DISPATCH(PanelCols)();
  const int64_t panels_b = ceil_div(n, panel_cols), panels_a = transpose_a ? ceil_div(m, kPanelRows) : 0;

  const int64_t tiles_m = ceil_div(m, kTileRows);
  const int64_t tile_rows = ceil_div(ceil_div(m, tiles_m), kPanelRows) * kPanelRows;
  int64_t tile_cols = kTileCols;
  while (tile_cols > 4 * panel_cols && tiles_m * ceil_div(n, tile_cols) < 6 * omp_get_max_threads()) tile_cols /= 2;
  const int64_t tiles_n = ceil_div(n, tile_cols);

  const MemoryScope scope(MemoryCategory::workspace);
  const int64_t most = std::min(k, kPackedDepth);
  const int64_t distance_a = most * kPanelRows + kPadding, distance_b = most * panel_cols + kPadding;
  const Tensor packed_a = empty({panels_a, distance_a}, DType::f32),
               packed_b = empty({panels_b, distance_b}, DType::f32);
  for (int64_t k0 = 0; k0 < k; k0 += kPackedDepth) {
    const int64_t depth = std::min(kPackedDepth, k - k0);
    float *const pb = packed_b.data<float>(), *const pa = packed_a.data<float>();
    const float* const b0 = transpose_b ? b + k0 : b + k0 * ldb;
    const float* const a0 = transpose_a ? a + k0 * lda : a + k0;
    const int64_t blocks = ceil_div(depth, kPackedRows);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < blocks; ++t) {
      const int64_t begin = t * kPackedRows, end = std::min(depth, begin + kPackedRows);
      if (transpose_a) HWY_DYNAMIC_DISPATCH(PackRows)(a0, lda, m, begin, end, distance_a, pa);
      if (!transpose_b) {
        HWY_DYNAMIC_DISPATCH(PackCols)(b0, ldb, n, begin, end, distance_b, pb);
        continue;
      }
      for (int64_t col = 0; col < n; col += panel_cols) HWY_DYNAMIC_DISPATCH(PackTransposed)
      (b0 + col * ldb, ldb, std::min(panel_cols, n - col), begin, end, pb + col / panel_cols * distance_b);
    }
    const LeftOperand left{transpose_a ? pa : a0, transpose_a, transpose_a ? distance_a : lda};
#pragma omp parallel for schedule(dynamic)
    for (int64_t t = 0; t < tiles_m * tiles_n; ++t) {
      const int64_t row = t / tiles_n * tile_rows, col = t % tiles_n * tile_cols;
      const Tile tile{row, std::min(m, row + tile_rows), col, std::min(n, col + tile_cols)};
      for (int64_t kb = 0; kb < depth; kb += kDepth) HWY_DYNAMIC_DISPATCH(MultiplyTile)
      (tile, left, pb, distance_b, kb, std::min(kDepth, depth - kb), Update{alpha, beta, bias, c, ldc, k0 + kb == 0});
    }
  }
}

}  // namespace lacuna::cpu
#endif  // HWY_ONCE

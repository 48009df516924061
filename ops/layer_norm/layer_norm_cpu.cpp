// Row by row, statistics in two passes: E[x^2] - mean^2 would cancel when |mean| is much larger than the spread.
//
//   xhat = (x - mean) rstd              y = gain xhat + bias
//   g    = gain dy                      dx = rstd (g - mean(g) - xhat mean(g xhat))
//   dgain = sum over rows of dy xhat    dbias = sum over rows of dy
//
// f32 is vectorised, f64 the plain formula. x is summed, and dropped out of dx, in chunks of rows that stay in the
// cache.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/layer_norm/layer_norm_cpu.cpp"
#include <hwy/foreach_target.h>
#include "ops/simd-inl.h"

#include "ops/layer_norm/layer_norm_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace lacuna::cpu::HWY_NAMESPACE {

void layer_norm_forward_f32(const float* HWY_RESTRICT x, const float* HWY_RESTRICT gain, const float* HWY_RESTRICT bias,
                            float eps, int64_t rows, int64_t cols, float* HWY_RESTRICT y, float* HWY_RESTRICT mean,
                            float* HWY_RESTRICT rstd) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> one;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d)), vectors_end = cols - cols % lanes;
  for (int64_t r = 0; r < rows; ++r, x += cols, y += cols) {
    auto sums = hn::Zero(d);
    for (int64_t j = 0; j < vectors_end; j += lanes) sums = hn::Add(sums, hn::LoadU(d, x + j));
    float sum = hn::GetLane(hn::SumOfLanes(d, sums));
    for (int64_t j = vectors_end; j < cols; ++j) sum += x[j];
    const float mu = sum / static_cast<float>(cols);

    const auto vmu = hn::Set(d, mu);
    sums = hn::Zero(d);
    for (int64_t j = 0; j < vectors_end; j += lanes) {
      const auto centered = hn::Sub(hn::LoadU(d, x + j), vmu);
      sums = hn::MulAdd(centered, centered, sums);
    }
    float squares = hn::GetLane(hn::SumOfLanes(d, sums));
    for (int64_t j = vectors_end; j < cols; ++j) squares += (x[j] - mu) * (x[j] - mu);
    const float variance = squares / static_cast<float>(cols);
    const float inv_std = 1.0f / hn::GetLane(hn::Sqrt(hn::Set(one, variance + eps)));

    const auto vinv_std = hn::Set(d, inv_std);
    for (int64_t j = 0; j < vectors_end; j += lanes) {
      const auto xhat = hn::Mul(hn::Sub(hn::LoadU(d, x + j), vmu), vinv_std);
      hn::StoreU(hn::MulAdd(hn::LoadU(d, gain + j), xhat, hn::LoadU(d, bias + j)), d, y + j);
    }
    for (int64_t j = vectors_end; j < cols; ++j) y[j] = gain[j] * ((x[j] - mu) * inv_std) + bias[j];
    mean[r] = mu;
    rstd[r] = inv_std;
  }
}

// dgain_dbias [2 * cols]: the sums over these rows. dx_beside may be null.
void layer_norm_backward_f32(const float* HWY_RESTRICT dy, const float* HWY_RESTRICT x, const float* HWY_RESTRICT gain,
                             const float* HWY_RESTRICT mean, const float* HWY_RESTRICT rstd,
                             const float* HWY_RESTRICT dx_beside, int64_t rows, int64_t cols, float* HWY_RESTRICT dx,
                             float* HWY_RESTRICT dgain_dbias) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d)), vectors_end = cols - cols % lanes;
  float* HWY_RESTRICT dgain = dgain_dbias;
  float* HWY_RESTRICT dbias = dgain_dbias + cols;
  for (int64_t j = 0; j < 2 * cols; ++j) dgain_dbias[j] = 0.0f;
  for (int64_t r = 0; r < rows; ++r, x += cols, dy += cols, dx += cols) {
    const auto mu = hn::Set(d, mean[r]), inv_std = hn::Set(d, rstd[r]);
    auto sums = hn::Zero(d), dots = hn::Zero(d);
    for (int64_t j = 0; j < vectors_end; j += lanes) {
      const auto xhat = hn::Mul(hn::Sub(hn::LoadU(d, x + j), mu), inv_std);
      const auto dyj = hn::LoadU(d, dy + j);
      const auto g = hn::Mul(hn::LoadU(d, gain + j), dyj);
      sums = hn::Add(sums, g);
      dots = hn::MulAdd(g, xhat, dots);
      hn::StoreU(hn::MulAdd(dyj, xhat, hn::LoadU(d, dgain + j)), d, dgain + j);
      hn::StoreU(hn::Add(dyj, hn::LoadU(d, dbias + j)), d, dbias + j);
    }
    float sum = hn::GetLane(hn::SumOfLanes(d, sums)), dot = hn::GetLane(hn::SumOfLanes(d, dots));
    for (int64_t j = vectors_end; j < cols; ++j) {
      const float xhat = (x[j] - mean[r]) * rstd[r];
      sum += gain[j] * dy[j];
      dot += gain[j] * dy[j] * xhat;
      dgain[j] += dy[j] * xhat;
      dbias[j] += dy[j];
    }
    const float mean_g = sum / static_cast<float>(cols), mean_g_xhat = dot / static_cast<float>(cols);

    const auto c0 = hn::Set(d, mean_g), c1 = hn::Set(d, mean_g_xhat);
    for (int64_t j = 0; j < vectors_end; j += lanes) {
      const auto xhat = hn::Mul(hn::Sub(hn::LoadU(d, x + j), mu), inv_std);
      const auto centered = hn::MulSub(hn::LoadU(d, gain + j), hn::LoadU(d, dy + j), c0);
      const auto dxj = hn::Mul(inv_std, hn::NegMulAdd(xhat, c1, centered));
      hn::StoreU(dx_beside ? hn::Add(dxj, hn::LoadU(d, dx_beside + j)) : dxj, d, dx + j);
    }
    for (int64_t j = vectors_end; j < cols; ++j) {
      const float dxj = rstd[r] * (gain[j] * dy[j] - mean_g - (x[j] - mean[r]) * rstd[r] * mean_g_xhat);
      dx[j] = dx_beside ? dxj + dx_beside[j] : dxj;
    }
    if (dx_beside) dx_beside += cols;
  }
}

}  // namespace lacuna::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>
#include <cmath>

#include "core/parallel.h"
#include "ops/column_sum.h"
#include "ops/dropout/dropout_cpu.h"
#include "ops/widen.h"

namespace lacuna::cpu {
namespace {

HWY_EXPORT(layer_norm_forward_f32);
HWY_EXPORT(layer_norm_backward_f32);

constexpr int64_t kRowsPerChunk = 32;

template <class T>
void forward_rows(const T* x, const T* gain, const T* bias, T eps, int64_t rows, int64_t cols, T* y, T* mean, T* rstd) {
  for (int64_t r = 0; r < rows; ++r, x += cols, y += cols) {
    T sum = 0;
    for (int64_t j = 0; j < cols; ++j) sum += x[j];
    const T mu = sum / static_cast<T>(cols);

    T squares = 0;
    for (int64_t j = 0; j < cols; ++j) squares += (x[j] - mu) * (x[j] - mu);
    const T inv_std = T{1} / std::sqrt(squares / static_cast<T>(cols) + eps);

    for (int64_t j = 0; j < cols; ++j) y[j] = gain[j] * ((x[j] - mu) * inv_std) + bias[j];
    mean[r] = mu;
    rstd[r] = inv_std;
  }
}

template <>
void forward_rows(const float* x, const float* gain, const float* bias, float eps, int64_t rows, int64_t cols, float* y,
                  float* mean, float* rstd) {
  HWY_DYNAMIC_DISPATCH(layer_norm_forward_f32)(x, gain, bias, eps, rows, cols, y, mean, rstd);
}

template <class T>
void backward_rows(const T* dy, const T* x, const T* gain, const T* mean, const T* rstd, const T* dx_beside,
                   int64_t rows, int64_t cols, T* dx, T* dgain_dbias) {
  T* const dgain = dgain_dbias;
  T* const dbias = dgain_dbias + cols;
  std::fill(dgain_dbias, dgain_dbias + 2 * cols, T{0});
  for (int64_t r = 0; r < rows; ++r, x += cols, dy += cols, dx += cols) {
    T sum = 0, dot = 0;
    for (int64_t j = 0; j < cols; ++j) {
      const T xhat = (x[j] - mean[r]) * rstd[r];
      sum += gain[j] * dy[j];
      dot += gain[j] * dy[j] * xhat;
      dgain[j] += dy[j] * xhat;
      dbias[j] += dy[j];
    }
    const T mean_g = sum / static_cast<T>(cols), mean_g_xhat = dot / static_cast<T>(cols);
    for (int64_t j = 0; j < cols; ++j) {
      const T dxj = rstd[r] * (gain[j] * dy[j] - mean_g - (x[j] - mean[r]) * rstd[r] * mean_g_xhat);
      dx[j] = dx_beside ? dxj + dx_beside[j] : dxj;
    }
    if (dx_beside) dx_beside += cols;
  }
}

template <>
void backward_rows(const float* dy, const float* x, const float* gain, const float* mean, const float* rstd,
                   const float* dx_beside, int64_t rows, int64_t cols, float* dx, float* dgain_dbias) {
  HWY_DYNAMIC_DISPATCH(layer_norm_backward_f32)
  (dy, x, gain, mean, rstd, dx_beside, rows, cols, dx, dgain_dbias);
}

/// The elements of x in one sample of the batch, by which dropout counts.
int64_t sample_size(const Tensor& x) { return x.numel() / std::max<int64_t>(1, x.dim(0)); }

/// The first element, or null.
template <class T>
T* data_or_null(const Tensor& t) {
  return t.defined() ? t.data<T>() : nullptr;
}

}  // namespace

void layer_norm_forward(Stream stream, const BranchSum& sum, const Tensor& gain, const Tensor& bias, float eps,
                        const Tensor& x, const Tensor& y, const Tensor& mean, const Tensor& rstd) {
  if (is_16_bit(y.dtype())) {
    if (sum.branch.defined()) dropout(stream, sum.branch, sum.residual, sum.mask, x);
    return write_rounded(
        y, [&](const Tensor& wide) { layer_norm_forward(stream, {}, gain, bias, eps, widened(x), wide, mean, rstd); });
  }
  dispatch_f32_f64(x.dtype(), "layer_norm", [&]<class T>() {
    const int64_t cols = gain.numel();
    const auto body = [&, residual = data_or_null<T>(sum.residual), branch = data_or_null<T>(sum.branch),
                       pgain = gain.data<T>(), pbias = bias.data<T>(), px = x.data<T>(), py = y.data<T>(),
                       pmean = mean.data<T>(), prstd = rstd.data<T>()](int64_t begin, int64_t end) {
      const int64_t first = begin * cols;
      if (branch)
        dropout_range(branch + first, residual + first, first, end * cols, sample_size(x), sum.mask, px + first);
      forward_rows<T>(px + first, pgain, pbias, T{eps}, end - begin, cols, py + first, pmean + begin, prstd + begin);
    };
    parallel_for(mean.numel(), body, kRowsPerChunk);
  });
}

void layer_norm_backward(Stream stream, const Tensor& dy, const Tensor& x, const Tensor& gain, const Tensor& mean,
                         const Tensor& rstd, const BranchGradients& beside, const Tensor& dx, const Tensor& dgain,
                         const Tensor& dbias) {
  if (is_16_bit(dx.dtype())) {
    const Tensor wide_beside = beside.dx_beside.defined() ? widened(beside.dx_beside) : Tensor();
    return write_rounded(dx, [&](const Tensor& wide) {
      layer_norm_backward(stream, widened(dy), widened(x), gain, mean, rstd, {.dx_beside = wide_beside}, wide, dgain,
                          dbias);
      if (beside.dbranch.defined())
        write_rounded(beside.dbranch,
                      [&](const Tensor& wide_branch) { dropout(stream, wide, {}, beside.mask, wide_branch); });
    });
  }
  dispatch_f32_f64(x.dtype(), "layer_norm", [&]<class T>() {
    const int64_t cols = gain.numel(), rows = mean.numel(), chunks = (rows + kRowsPerChunk - 1) / kRowsPerChunk;
    const MemoryScope scope(MemoryCategory::workspace);
    const Tensor partial = empty({chunks, 2 * cols}, x.dtype());  // dgain and dbias of each chunk of rows
    const Tensor total = empty({2 * cols}, x.dtype());
    const auto body = [&, pdy = dy.data<T>(), px = x.data<T>(), pgain = gain.data<T>(), pmean = mean.data<T>(),
                       prstd = rstd.data<T>(), pbeside = data_or_null<T>(beside.dx_beside), pdx = dx.data<T>(),
                       pbranch = data_or_null<T>(beside.dbranch),
                       ppartial = partial.data<T>()](int64_t begin, int64_t end) {
      const int64_t first = begin * cols;
      backward_rows<T>(pdy + first, px + first, pgain, pmean + begin, prstd + begin,
                       pbeside ? pbeside + first : nullptr, end - begin, cols, pdx + first,
                       ppartial + begin / kRowsPerChunk * 2 * cols);
      if (pbranch) dropout_range(pdx + first, nullptr, first, end * cols, sample_size(x), beside.mask, pbranch + first);
    };
    parallel_for(rows, body, kRowsPerChunk);
    column_sum(partial.data<T>(), chunks, 2 * cols, total.data<T>());
    copy(total.view(0, {cols}), dgain);
    copy(total.view(cols, {cols}), dbias);
  });
}

}  // namespace lacuna::cpu
#endif  // HWY_ONCE

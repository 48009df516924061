#include <algorithm>
#include <cmath>

#include "core/parallel.h"
#include "optim/kernels.h"

namespace lacuna::cpu {
namespace {

/// The sum of `count` squares in eight interleaved sums, which vectorize.
template <class T>
double sum_of_squares_of(const T* x, int64_t count) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int64_t lane = 0; lane < 8; ++lane) sums[lane] += static_cast<double>(x[i + lane]) * x[i + lane];
  for (; i < count; ++i) sums[0] += static_cast<double>(x[i]) * x[i];
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

}  // namespace

void adam_update(Stream, const AdamFactors& factors, const AdamBuffers& buffers) {
  const bool clips = buffers.sum_of_squares.defined();
  const double gradient_scale = clips ? clipped_scale(factors, *buffers.sum_of_squares.data<double>()) : factors.scale;
  if (gradient_scale == 0.0) return;
  dispatch_f32_f64(buffers.values.dtype(), "adam", [&]<class T>() {
    const auto scale = static_cast<T>(gradient_scale), eps = static_cast<T>(factors.eps);
    const auto beta1 = static_cast<T>(factors.beta1), beta2 = static_cast<T>(factors.beta2);
    const auto rest1 = static_cast<T>(1.0 - factors.beta1), rest2 = static_cast<T>(1.0 - factors.beta2);
    const auto rate = static_cast<T>(factors.lr / factors.correction1);
    const auto v_factor = static_cast<T>(1.0 / factors.correction2);
    const int64_t* const pieces = buffers.pieces.data<int64_t>();
    const T* const all_g = buffers.gradients.data<T>();
    T *const all_p = buffers.values.data<T>(), *const all_m = buffers.exp_avg.data<T>(),
             *const all_v = buffers.exp_avg_sq.data<T>();
#pragma omp parallel for schedule(static)
    for (int64_t piece = 0; piece < buffers.pieces.dim(0); ++piece) {
      const int64_t begin = pieces[3 * piece], count = pieces[3 * piece + 1];
      const T decay = pieces[3 * piece + 2] ? static_cast<T>(factors.lr * factors.weight_decay) : T{0};
      const T* const g = all_g + begin;
      T *const p = all_p + begin, *const m = all_m + begin, *const v = all_v + begin;
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        const T gradient = scale * g[i];
        m[i] = beta1 * m[i] + rest1 * gradient;
        v[i] = beta2 * v[i] + rest2 * gradient * gradient;
        p[i] -= rate * m[i] / (std::sqrt(v_factor * v[i]) + eps) + decay * p[i];
      }
    }
  });
  if (buffers.average.defined()) average_update({}, factors.ema_decay, buffers.values, buffers.average);
  if (buffers.rounded.defined()) copy(buffers.values, buffers.rounded);
}

void sum_of_squares(Stream, const Tensor& x, const Tensor& sum) {
  const int64_t pieces = (x.numel() + kPieceSize - 1) / kPieceSize;
  std::vector<double> sums(static_cast<size_t>(pieces));
  dispatch_f32_f64(x.dtype(), "global_gradient_norm", [&]<class T>() {
    const T* const data = x.data<T>();
#pragma omp parallel for schedule(static)
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t begin = piece * kPieceSize;
      sums[static_cast<size_t>(piece)] = sum_of_squares_of(data + begin, std::min(kPieceSize, x.numel() - begin));
    }
  });
  for (size_t half = 1; half < sums.size(); half *= 2)
    for (size_t i = 0; i + half < sums.size(); i += 2 * half) sums[i] += sums[i + half];
  *sum.data<double>() = sums.empty() ? 0.0 : sums[0];
}

void average_update(Stream, double decay, const Tensor& x, const Tensor& average) {
  dispatch_f32_f64(x.dtype(), "ema", [&]<class T>() {
    const auto rest = static_cast<T>(1.0 - decay);
    const T* const from = x.data<T>();
    T* const to = average.data<T>();
    parallel_for(x.numel(), [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[i] += rest * (from[i] - to[i]);
    });
  });
}

void exchange(Stream, const Tensor& a, const Tensor& b) {
  dispatch_f32_f64(a.dtype(), "ema", [&]<class T>() {
    T *const x = a.data<T>(), *const y = b.data<T>();
    parallel_for(a.numel(), [=](int64_t begin, int64_t end) { std::swap_ranges(x + begin, x + end, y + begin); });
  });
}

}  // namespace lacuna::cpu

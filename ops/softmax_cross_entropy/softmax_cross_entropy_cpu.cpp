// Row by row: m = max z, s = sum exp(z - m), lse = m + log s, loss = (m - z[target]) + log s. f32 is vectorised (its
// logarithms and sums of losses are f64), f64 the plain formula.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/softmax_cross_entropy/softmax_cross_entropy_cpu.cpp"
#include <hwy/foreach_target.h>
#include "ops/simd-inl.h"

#include "ops/softmax_cross_entropy/softmax_cross_entropy_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace lacuna::cpu::HWY_NAMESPACE {

// max_z = max over z, sum = sum of exp(z - max_z).
void softmax_statistics_f32(const float* HWY_RESTRICT z, int64_t n_vocab, float* HWY_RESTRICT max_z,
                            float* HWY_RESTRICT sum) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> one;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d)), vectors_end = n_vocab - n_vocab % lanes;

  auto maxima = hn::Set(d, z[0]);
  for (int64_t j = 0; j < vectors_end; j += lanes) maxima = hn::Max(maxima, hn::LoadU(d, z + j));
  float m = hn::GetLane(hn::MaxOfLanes(d, maxima));
  for (int64_t j = vectors_end; j < n_vocab; ++j) m = m < z[j] ? z[j] : m;

  auto sums = hn::Zero(d);
  for (int64_t j = 0; j < vectors_end; j += lanes)
    sums = hn::Add(sums, exp_nonpositive(d, hn::Sub(hn::LoadU(d, z + j), hn::Set(d, m))));
  float s = hn::GetLane(hn::SumOfLanes(d, sums));
  for (int64_t j = vectors_end; j < n_vocab; ++j) s += hn::GetLane(exp_nonpositive(one, hn::Set(one, z[j] - m)));
  *max_z = m;
  *sum = s;
}

// dz = scale exp(z - lse).
void softmax_scaled_f32(const float* z, float lse, float scale, int64_t n_vocab, float* dz) {  // dz may be z
  for_each_vector(n_vocab, [=](auto d, int64_t j) HWY_ATTR {
    const auto p = exp_nonpositive(d, hn::Sub(hn::LoadU(d, z + j), hn::Set(d, lse)));
    hn::StoreU(hn::Mul(hn::Set(d, scale), p), d, dz + j);
  });
}

}  // namespace lacuna::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>
#include <cmath>
#include <vector>

#include "core/parallel.h"
#include "ops/widen.h"

namespace lacuna::cpu {
namespace {

HWY_EXPORT(softmax_statistics_f32);
HWY_EXPORT(softmax_scaled_f32);

constexpr int64_t kRowsPerChunk = 64;

template <class T>
void statistics(const T* z, int64_t n_vocab, T* max_z, T* sum) {
  *max_z = *std::max_element(z, z + n_vocab);
  *sum = 0;
  for (int64_t j = 0; j < n_vocab; ++j) *sum += std::exp(z[j] - *max_z);
}

template <>
void statistics(const float* z, int64_t n_vocab, float* max_z, float* sum) {
  HWY_DYNAMIC_DISPATCH(softmax_statistics_f32)(z, n_vocab, max_z, sum);
}

template <class T>
void scaled_softmax(const T* z, T lse, T scale, int64_t n_vocab, T* dz) {
  for (int64_t j = 0; j < n_vocab; ++j) dz[j] = scale * std::exp(z[j] - lse);
}

template <>
void scaled_softmax(const float* z, float lse, float scale, int64_t n_vocab, float* dz) {
  HWY_DYNAMIC_DISPATCH(softmax_scaled_f32)(z, lse, scale, n_vocab, dz);
}

}  // namespace

void softmax_cross_entropy_forward(Stream stream, const Tensor& logits, const Tensor& targets, const Tensor& lse,
                                   const Tensor& row_loss) {
  if (is_16_bit(logits.dtype())) return softmax_cross_entropy_forward(stream, widened(logits), targets, lse, row_loss);
  dispatch_f32_f64(logits.dtype(), "softmax_cross_entropy", [&]<class T>() {
    const int64_t n_vocab = logits.dim(-1);
    const T* const z = logits.data<T>();
    const uint8_t* const target = targets.data<uint8_t>();
    T* const plse = lse.data<T>();
    double* const loss = row_loss.data<double>();
    parallel_for(
        targets.numel(),
        [=](int64_t begin, int64_t end) {
          for (int64_t r = begin; r < end; ++r) {
            T max_z, sum;
            statistics<T>(z + r * n_vocab, n_vocab, &max_z, &sum);
            const double log_sum = std::log(double{sum});
            plse[r] = static_cast<T>(max_z + log_sum);
            loss[r] = (double{max_z} - z[r * n_vocab + target[r]]) + log_sum;
          }
        },
        kRowsPerChunk);
  });
}

void softmax_cross_entropy_backward(Stream stream, const Tensor& dloss, const Tensor& logits, const Tensor& targets,
                                    const Tensor& lse, const Tensor& dlogits) {
  if (is_16_bit(dlogits.dtype()))
    return write_rounded(dlogits, [&](const Tensor& wide) {
      softmax_cross_entropy_backward(stream, dloss, widened(logits), targets, lse, wide);
    });
  dispatch_f32_f64(logits.dtype(), "softmax_cross_entropy", [&]<class T>() {
    const int64_t n_vocab = logits.dim(-1);
    const T scale = static_cast<T>(double{*dloss.data<T>()} / static_cast<double>(targets.numel()));
    const T* const z = logits.data<T>();
    const T* const plse = lse.data<T>();
    const uint8_t* const target = targets.data<uint8_t>();
    T* const dz = dlogits.data<T>();
    parallel_for(
        targets.numel(),
        [=](int64_t begin, int64_t end) {
          for (int64_t r = begin; r < end; ++r) {
            scaled_softmax<T>(z + r * n_vocab, plse[r], scale, n_vocab, dz + r * n_vocab);
            dz[r * n_vocab + target[r]] -= scale;
          }
        },
        kRowsPerChunk);
  });
}

void mean_of_rows(Stream, const Tensor& row_loss, const Tensor& mean) {
  const int64_t rows = row_loss.numel();
  const double* const loss = row_loss.data<double>();
  // Sums the differences to the first row: the mean of equal losses is then exactly their value.
  const double origin = std::isfinite(loss[0]) ? loss[0] : 0.0;
  std::vector<double> partial(static_cast<size_t>((rows + kRowsPerChunk - 1) / kRowsPerChunk));
  for (int64_t r = 0; r < rows; ++r) partial[static_cast<size_t>(r / kRowsPerChunk)] += loss[r] - origin;
  double sum = 0.0;
  for (const double p : partial) sum += p;
  fill(mean, origin + sum / static_cast<double>(rows));
}

}  // namespace lacuna::cpu
#endif  // HWY_ONCE

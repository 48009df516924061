// y = x s with s = sigmoid(1.702 x); dy/dx = s (1 + 1.702 x (1 - s)). f32 is vectorised, f64 the plain formula; bf16
// and f16 are computed in f32, a few in the cache at a time.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/gelu/gelu_cpu.cpp"
#include <hwy/foreach_target.h>
#include "ops/simd-inl.h"

#include "ops/gelu/gelu_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace lacuna::cpu::HWY_NAMESPACE {

// sigmoid(z) from e = exp(-|z|), which cannot overflow: 1 / (1 + e) for z >= 0, e / (1 + e) below.
template <class D, class V>
HWY_INLINE V gelu_sigmoid(D d, V z) {
  const V one = hn::Set(d, 1.0f);
  const V e = hn::Exp(d, hn::Neg(hn::Abs(z)));
  return hn::Div(hn::IfThenElse(hn::Lt(z, hn::Zero(d)), e, one), hn::Add(one, e));
}

void gelu_forward_f32(const float* HWY_RESTRICT x, int64_t count, float* HWY_RESTRICT y) {
  for_each_vector(count, [=](auto d, int64_t i) HWY_ATTR {
    const auto xi = hn::LoadU(d, x + i);
    const auto s = gelu_sigmoid(d, hn::Mul(xi, hn::Set(d, 1.702f)));
    hn::StoreU(hn::Mul(xi, s), d, y + i);
  });
}

void gelu_backward_f32(const float* HWY_RESTRICT dy, const float* HWY_RESTRICT x, int64_t count,
                       float* HWY_RESTRICT dx) {
  for_each_vector(count, [=](auto d, int64_t i) HWY_ATTR {
    const auto z = hn::Mul(hn::LoadU(d, x + i), hn::Set(d, 1.702f));
    const auto s = gelu_sigmoid(d, z);
    const auto slope = hn::MulAdd(hn::Mul(z, s), hn::Sub(hn::Set(d, 1.0f), s), s);
    hn::StoreU(hn::Mul(hn::LoadU(d, dy + i), slope), d, dx + i);
  });
}

}  // namespace lacuna::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <cmath>

#include "core/parallel.h"
#include "ops/widen.h"

namespace lacuna::cpu {
namespace {

HWY_EXPORT(gelu_forward_f32);
HWY_EXPORT(gelu_backward_f32);

template <class T>
T sigmoid(T z) {
  return T{1} / (T{1} + std::exp(-z));
}

template <class T>
void forward(const T* x, int64_t count, T* y) {
  for (int64_t i = 0; i < count; ++i) y[i] = x[i] * sigmoid(T(1.702) * x[i]);
}

template <>
void forward(const float* x, int64_t count, float* y) {
  HWY_DYNAMIC_DISPATCH(gelu_forward_f32)(x, count, y);
}

template <class T>
requires(sizeof(T) == 2) void forward(const T* x, int64_t count, T* y) { compute_widened(count, y, forward<float>, x); }

template <class T>
void backward(const T* dy, const T* x, int64_t count, T* dx) {
  for (int64_t i = 0; i < count; ++i) {
    const T z = T(1.702) * x[i];
    const T s = sigmoid(z);
    dx[i] = dy[i] * s * (T{1} + z * (T{1} - s));
  }
}

template <>
void backward(const float* dy, const float* x, int64_t count, float* dx) {
  HWY_DYNAMIC_DISPATCH(gelu_backward_f32)(dy, x, count, dx);
}

template <class T>
requires(sizeof(T) == 2) void backward(const T* dy, const T* x, int64_t count, T* dx) {
  compute_widened(count, dx, backward<float>, dy, x);
}

}  // namespace

void gelu_forward(Stream, const Tensor& x, const Tensor& y) {
  dispatch_floating(x.dtype(), "gelu", [&]<class T>() {
    parallel_for(x.numel(), [px = x.data<T>(), py = y.data<T>()](int64_t begin, int64_t end) {
      forward<T>(px + begin, end - begin, py + begin);
    });
  });
}

void gelu_backward(Stream, const Tensor& dy, const Tensor& x, const Tensor& dx) {
  dispatch_floating(x.dtype(), "gelu", [&]<class T>() {
    parallel_for(x.numel(), [pdy = dy.data<T>(), px = x.data<T>(), pdx = dx.data<T>()](int64_t begin, int64_t end) {
      backward<T>(pdy + begin, px + begin, end - begin, pdx + begin);
    });
  });
}

}  // namespace lacuna::cpu
#endif  // HWY_ONCE

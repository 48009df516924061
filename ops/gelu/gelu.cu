// y = x s with s = sigmoid(1.702 x); dy/dx = s (1 + 1.702 x (1 - s)).

#include "core/cuda/kernel.h"
#include "ops/gelu/gelu_kernels.h"

namespace lacuna::gpu {
namespace {

// From e = exp(-|z|), which cannot overflow: 1 / (1 + e) for z >= 0, e / (1 + e) below.
__device__ inline float sigmoid(float z) {
  const float e = expf(-fabsf(z));
  return (z < 0.0f ? e : 1.0f) / (1.0f + e);
}

struct Gelu {
  static constexpr int kInputs = 1;
  __device__ float operator()(float x, float) const { return x * sigmoid(1.702f * x); }
};

struct GeluGradient {
  static constexpr int kInputs = 2;
  __device__ float operator()(float dy, float x) const {
    const float z = 1.702f * x, s = sigmoid(z);
    return dy * (s + z * s * (1.0f - s));
  }
};

}  // namespace

void gelu_forward(Stream stream, const Tensor& x, const Tensor& y) {
  dispatch_float(x.dtype(), "gelu", [&]<class T>() { elementwise<T>(stream, "gelu", Gelu{}, x, x, y); });
}

void gelu_backward(Stream stream, const Tensor& dy, const Tensor& x, const Tensor& dx) {
  dispatch_float(x.dtype(), "gelu", [&]<class T>() { elementwise<T>(stream, "gelu", GeluGradient{}, dy, x, dx); });
}

}  // namespace lacuna::gpu

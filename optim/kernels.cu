#include "core/cuda/kernel.h"
#include "core/cuda/reduce.cuh"
#include "optim/kernels.h"

namespace lacuna::gpu {
namespace {

// What a thread of adam_kernel needs, rounded once on the host.
struct Constants {
  float eps, beta1, beta2, rest1, rest2, rate, v_factor, decay, ema_rest;
};

// Unscale, clip, Adam, average, round: one pass over all parameters.
//   grid       a block for each piece
//   thread     eight neighbouring elements out of every 8 kBlockThreads of the piece
//   precision  f32; values rounded to R (bf16, f16) once on store
//   requires   pieces begin at multiples of 8 elements
template <class R>
__global__ void adam_kernel(AdamFactors factors, Constants c, const double* sum_of_squares, const int64_t* pieces,
                            const float* g, float* p, float* m, float* v, float* average, R* rounded) {
  const double clipped = sum_of_squares ? clipped_scale(factors, *sum_of_squares) : factors.scale;
  if (clipped == 0.0) return;  // gradients are not finite
  const float scale = static_cast<float>(clipped);
  const int64_t begin = pieces[3 * int64_t{blockIdx.x}], count = pieces[3 * int64_t{blockIdx.x} + 1];
  const float decay = pieces[3 * int64_t{blockIdx.x} + 2] ? c.decay : 0.0f;
  for (int64_t i = int64_t{threadIdx.x} * kEight; i < count; i += kBlockThreads * kEight) {
    const int64_t at = begin + i, left = count - i;
    float gs[kEight], ps[kEight], ms[kEight], vs[kEight];
    load_eight(g + at, left, true, gs);
    load_eight(p + at, left, true, ps);
    load_eight(m + at, left, true, ms);
    load_eight(v + at, left, true, vs);
    for (int e = 0; e < kEight; ++e) {
      const float gradient = scale * gs[e];
      ms[e] = c.beta1 * ms[e] + c.rest1 * gradient;
      vs[e] = c.beta2 * vs[e] + c.rest2 * gradient * gradient;
      ps[e] -= c.rate * ms[e] / (sqrtf(c.v_factor * vs[e]) + c.eps) + decay * ps[e];
    }
    store_eight(ms, left, true, m + at);
    store_eight(vs, left, true, v + at);
    store_eight(ps, left, true, p + at);
    if (average) {
      float as[kEight];
      load_eight(average + at, left, true, as);
      for (int e = 0; e < kEight; ++e) as[e] += c.ema_rest * (ps[e] - as[e]);
      store_eight(as, left, true, average + at);
    }
    if (rounded) store_eight(ps, left, true, rounded + at);
  }
}

struct Average {
  static constexpr int kInputs = 2;
  float rest;
  __device__ float operator()(float x, float average) const { return average + rest * (x - average); }
};

// a and b exchanged.   thread: one element
__global__ void exchange_kernel(int64_t count, float* a, float* b) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const float x = a[i];
  a[i] = b[i];
  b[i] = x;
}

float* data_or_null(const Tensor& t) { return t.defined() ? data<float>(t) : nullptr; }

}  // namespace

void adam_update(Stream stream, const AdamFactors& f, const AdamBuffers& b) {
  if (b.pieces.dim(0) == 0) return;
  const auto narrow = [](double x) { return static_cast<float>(x); };
  const Constants constants{narrow(f.eps),
                            narrow(f.beta1),
                            narrow(f.beta2),
                            narrow(1.0 - f.beta1),
                            narrow(1.0 - f.beta2),
                            narrow(f.lr / f.correction1),
                            narrow(1.0 / f.correction2),
                            narrow(f.lr * f.weight_decay),
                            narrow(1.0 - f.ema_decay)};
  dispatch_float(b.rounded.defined() ? b.rounded.dtype() : DType::f32, "adam", [&]<class R>() {
    launch(stream, adam_kernel<R>, dim3(grid_of(b.pieces.dim(0), "adam")), dim3(kBlockThreads), 0, f, constants,
           b.sum_of_squares.defined() ? data<double>(b.sum_of_squares) : nullptr, data<int64_t>(b.pieces),
           data<float>(b.gradients), data<float>(b.values), data<float>(b.exp_avg), data<float>(b.exp_avg_sq),
           data_or_null(b.average), b.rounded.defined() ? data<R>(b.rounded) : nullptr);
  });
}

void sum_of_squares(Stream stream, const Tensor& x, const Tensor& sum) {
  static_assert(kReducePiece == kPieceSize);
  reduce_sum<Square>(stream, "global_gradient_norm", data<float>(x), x.numel(), data<double>(sum));
}

void average_update(Stream stream, double decay, const Tensor& x, const Tensor& average) {
  elementwise<float>(stream, "ema", Average{static_cast<float>(1.0 - decay)}, x, average, average);
}

void exchange(Stream stream, const Tensor& a, const Tensor& b) {
  if (a.numel() == 0) return;
  launch(stream, exchange_kernel, dim3(grid_of(ceil_div(a.numel(), kBlockThreads), "ema")), dim3(kBlockThreads), 0, a.numel(),
         data<float>(a), data<float>(b));
}

}  // namespace lacuna::gpu

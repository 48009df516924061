#include "ops/dropout/dropout.cuh"

namespace lacuna::gpu {
namespace {

// y = residual + (x scale where the mask keeps it, else 0). x, residual, y [samples, size]; residual may be null.
//   thread     group g of a sample: its elements 8 g to 8 g + 7, one Philox block
//   precision  loads T, computes f32, rounds once on store
//   requires   nothing: without 16-byte alignment elements go one by one
template <class T>
__global__ void dropout_kernel(const T* x, const T* residual, DropoutMask mask, float scale, int64_t samples,
                               int64_t size, bool aligned, T* y) {
  const int64_t groups = (size + kEight - 1) / kEight;  // of each sample
  const int64_t thread = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (thread >= samples * groups) return;
  const int64_t sample = thread / groups, group = thread % groups;

  const int64_t first = sample * size + group * kEight, count = size - group * kEight;
  float values[kEight];
  load_eight(x + first, count, aligned, values);
  drop_eight(mask, scale, sample, group * kEight, values);
  if (residual) add_eight(residual + first, count, aligned, values);
  store_eight(values, count, aligned, y + first);
}

}  // namespace

void dropout(Stream stream, const Tensor& x, const Tensor& residual, const DropoutMask& mask, const Tensor& y) {
  dispatch_float(x.dtype(), "dropout", [&]<class T>() {
    if (x.numel() == 0) return;
    const int64_t samples = x.dim(0), size = x.numel() / samples;
    const T* const presidual = residual.defined() ? data<T>(residual) : nullptr;
    const bool aligned =
        size % kEight == 0 && is_aligned(x.raw(), 16) && is_aligned(presidual, 16) && is_aligned(y.raw(), 16);
    const int64_t blocks = ceil_div(samples * ceil_div(size, kEight), kBlockThreads);
    launch(stream, dropout_kernel<T>, dim3(grid_of(blocks, "dropout")), dim3(kBlockThreads), 0, data<T>(x), presidual, mask,
           static_cast<float>(mask.scale()), samples, size, aligned, data<T>(y));
  });
}

}  // namespace lacuna::gpu

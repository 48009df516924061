// The formulas stand in layer_norm_cpu.cpp. A row is read from memory once: what a later pass reads again lies in L1.

#include "core/cuda/kernel.h"
#include "ops/column_sum.cuh"
#include "ops/dropout/dropout.cuh"
#include "ops/layer_norm/layer_norm_kernels.h"

namespace lacuna::gpu {
namespace {

constexpr int kRowsPerBlock = 64;  // of backward: a fact of the code, not of the device, as it decides the order of sums

// Calls body(column) for the first of each eight columns that a lane owns: 8 lane, 8 lane + 256, ...
template <class Body>
__device__ void for_own_columns(int64_t cols, const Body& body) {
  for (int64_t j = int64_t{threadIdx.x} * kEight; j < cols; j += kWarpSize * kEight) body(j);
}

/// A dropout beside a norm of rows [samples * rows_per_sample, cols], as the kernels see it.
struct Drop {
  DropoutMask mask;
  float scale;
  int64_t rows_per_sample;

  __device__ void operator()(int64_t row, int64_t cols, int64_t column, float (&values)[kEight]) const {
    drop_eight(mask, scale, row / rows_per_sample, row % rows_per_sample * cols + column, values);
  }
};

Drop drop_of(const DropoutMask& mask, const Tensor& x) {
  const int64_t rows = x.numel() / x.dim(-1);
  return {mask, static_cast<float>(mask.scale()), std::max<int64_t>(1, rows / x.dim(0))};
}

// Forward. residual, branch, x, y [rows, cols]; gain, bias [cols]; mean, rstd [rows].
//   grid       one warp for a row, kRowWarps rows a block
//   lane       eight neighbouring columns out of every 256
//   math       x = residual + dropout(branch), or as it is where branch is null; statistics of x as stored, in two
//              passes: E[x^2] - mean^2 would cancel when |mean| is much larger than the spread
//   precision  loads T, accumulates f32, rounds once on store
//   requires   rows >= 1, cols >= 1; without 16-byte alignment elements go one by one
template <class T>
__global__ void layer_norm_forward_kernel(const T* residual, const T* branch, Drop drop, const float* gain,
                                          const float* bias, float eps, int64_t rows, int64_t cols, bool aligned, T* x,
                                          T* y, float* mean, float* rstd) {
  const int64_t row = int64_t{blockIdx.x} * kRowWarps + threadIdx.y;
  if (row >= rows) return;  // leaves by whole warps, so warp_sum below stays safe
  x += row * cols;
  y += row * cols;
  float v[kEight];

  float sum = 0.0f;
  for_own_columns(cols, [&](int64_t j) {
    if (branch) {
      load_eight(branch + row * cols + j, cols - j, aligned, v);
      drop(row, cols, j, v);
      add_eight(residual + row * cols + j, cols - j, aligned, v);
      store_eight(v, cols - j, aligned, x + j);  // which this lane alone reads again
    }
    load_eight(x + j, cols - j, aligned, v);
    for (int i = 0; i < kEight; ++i) sum += v[i];
  });
  const float mu = warp_sum(sum) / static_cast<float>(cols);

  float squares = 0.0f;
  for_own_columns(cols, [&](int64_t j) {
    load_eight(x + j, cols - j, aligned, v);
    for (int i = 0; i < kEight; ++i)
      if (j + i < cols) squares += (v[i] - mu) * (v[i] - mu);
  });
  const float inv_std = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(cols) + eps);

  for_own_columns(cols, [&](int64_t j) {
    float g[kEight], b[kEight];
    load_eight(x + j, cols - j, aligned, v);
    load_eight(gain + j, cols - j, aligned, g);
    load_eight(bias + j, cols - j, aligned, b);
    for (int i = 0; i < kEight; ++i) v[i] = g[i] * ((v[i] - mu) * inv_std) + b[i];
    store_eight(v, cols - j, aligned, y + j);
  });
  if (threadIdx.x == 0) mean[row] = mu;
  if (threadIdx.x == 0) rstd[row] = inv_std;
}

// Where a column lies in shared memory: neighbouring lanes, which own every eighth column, meet in neighbouring banks.
__device__ inline int64_t slot(int64_t column) { return column / 256 * 256 + column % 8 * 32 + column % 256 / 8; }
__host__ __device__ constexpr int64_t padded_to_256(int64_t cols) { return (cols + 255) / 256 * 256; }

// Backward. dy, x, dx_beside, dx, dbranch [rows, cols]; partial [blocks, 2, cols] gets dgain and dbias of each block's
// rows.
//   grid       kRowsPerBlock rows a block; warp w takes rows w, w + kRowWarps, ... of them
//   lane       eight neighbouring columns out of every 256, in every row the same
//   shared     sums [kRowWarps, 2, padded_to_256(cols)]: dgain and dbias of each warp's rows, column j at slot(j)
//   math       dx = dx_beside + rstd (g - mean(g) - xhat mean(g xhat)) with g = gain dy; dbranch = dropout(dx)
//   precision  loads T, accumulates f32, rounds once on store
//   requires   dx_beside and dbranch may be null
template <class T>
__global__ void layer_norm_backward_kernel(const T* dy, const T* x, const float* gain, const float* mean,
                                           const float* rstd, const T* dx_beside, Drop drop, int64_t rows, int64_t cols,
                                           bool aligned, T* dx, T* dbranch, float* partial) {
  LACUNA_DYNAMIC_SHARED(float, sums);
  const int64_t padded = padded_to_256(cols);
  float* const dgain = sums + int64_t{threadIdx.y} * 2 * padded;
  float* const dbias = dgain + padded;
  for_own_columns(cols, [&](int64_t j) {
    for (int i = 0; i < kEight; ++i) dgain[slot(j + i)] = dbias[slot(j + i)] = 0.0f;
  });

  const int64_t first = int64_t{blockIdx.x} * kRowsPerBlock;
  const int64_t end = first + kRowsPerBlock < rows ? first + kRowsPerBlock : rows;
  for (int64_t row = first + threadIdx.y; row < end; row += kRowWarps) {
    const T* const dy_row = dy + row * cols;
    const T* const x_row = x + row * cols;
    const float mu = mean[row], inv_std = rstd[row];
    float sum = 0.0f, dot = 0.0f;  // of g, of g xhat
    float g[kEight], xhat[kEight];
    const auto load = [&](int64_t j, bool accumulate) {
      float v[kEight], w[kEight];
      load_eight(dy_row + j, cols - j, aligned, v);
      load_eight(x_row + j, cols - j, aligned, xhat);
      load_eight(gain + j, cols - j, aligned, w);
      for (int i = 0; i < kEight; ++i) {
        xhat[i] = (xhat[i] - mu) * inv_std;  // beyond the row v and w are 0, so nothing comes of it
        g[i] = w[i] * v[i];
      }
      if (!accumulate) return;
      const int64_t own = slot(j);  // j is a multiple of 8: slot(j + i) = own + 32 i
      for (int i = 0; i < kEight; ++i) dgain[own + kWarpSize * i] += v[i] * xhat[i];
      for (int i = 0; i < kEight; ++i) dbias[own + kWarpSize * i] += v[i];
    };
    for_own_columns(cols, [&](int64_t j) {
      load(j, true);
      for (int i = 0; i < kEight; ++i) {
        sum += g[i];
        dot += g[i] * xhat[i];
      }
    });
    const float mean_g = warp_sum(sum) / static_cast<float>(cols);
    const float mean_g_xhat = warp_sum(dot) / static_cast<float>(cols);
    for_own_columns(cols, [&](int64_t j) {
      load(j, false);
      for (int i = 0; i < kEight; ++i) g[i] = inv_std * (g[i] - mean_g - xhat[i] * mean_g_xhat);
      if (dx_beside) add_eight(dx_beside + row * cols + j, cols - j, aligned, g);
      store_eight(g, cols - j, aligned, dx + row * cols + j);
      if (!dbranch) return;
      drop(row, cols, j, g);
      store_eight(g, cols - j, aligned, dbranch + row * cols + j);
    });
  }

  __syncthreads();
  for (int64_t j = threadIdx.y * kWarpSize + threadIdx.x; j < 2 * cols; j += kRowWarps * kWarpSize) {
    const int64_t from = j < cols ? slot(j) : padded + slot(j - cols);
    float total = 0.0f;
    for (int warp = 0; warp < kRowWarps; ++warp) total += sums[warp * 2 * padded + from];
    partial[int64_t{blockIdx.x} * 2 * cols + j] = total;
  }
}

bool all_aligned(int64_t cols, std::initializer_list<Tensor> tensors) {
  return cols % kEight == 0 && std::all_of(tensors.begin(), tensors.end(),
                                           [](const Tensor& t) { return !t.defined() || is_aligned(t.raw(), 16); });
}

template <class T>
T* data_or_null(const Tensor& t) {
  return t.defined() ? data<T>(t) : nullptr;
}

constexpr int64_t kSharedPerColumn = kRowWarps * 2 * sizeof(float);  // bytes, of backward

}  // namespace

void check_layer_norm_backward(Device device, int64_t d_model) {
  const int64_t most = properties(device).shared_bytes / kSharedPerColumn / 256 * 256;
  check(d_model <= most, "layer_norm: on this GPU d_model must be at most ", most, ", got ", d_model);
}

void layer_norm_forward(Stream stream, const BranchSum& sum, const Tensor& gain, const Tensor& bias, float eps,
                        const Tensor& x, const Tensor& y, const Tensor& mean, const Tensor& rstd) {
  dispatch_float(x.dtype(), "layer_norm", [&]<class T>() {
    const int64_t rows = mean.numel(), cols = gain.numel();
    if (rows == 0) return;
    launch(stream, layer_norm_forward_kernel<T>, dim3(grid_of(ceil_div(rows, kRowWarps), "layer_norm")),
           dim3(kWarpSize, kRowWarps), 0, data_or_null<T>(sum.residual), data_or_null<T>(sum.branch),
           drop_of(sum.mask, x), data<float>(gain), data<float>(bias), eps, rows, cols,
           all_aligned(cols, {sum.residual, sum.branch, x, gain, bias, y}), data<T>(x), data<T>(y), data<float>(mean),
           data<float>(rstd));
  });
}

void layer_norm_backward(Stream stream, const Tensor& dy, const Tensor& x, const Tensor& gain, const Tensor& mean,
                         const Tensor& rstd, const BranchGradients& beside, const Tensor& dx, const Tensor& dgain,
                         const Tensor& dbias) {
  dispatch_float(x.dtype(), "layer_norm", [&]<class T>() {
    const int64_t rows = mean.numel(), cols = gain.numel(), blocks = ceil_div(rows, kRowsPerBlock);
    check_layer_norm_backward(stream.device, cols);
    const MemoryScope scope(MemoryCategory::workspace);
    const Tensor partial = empty({blocks, 2 * cols}, DType::f32, stream.device);
    const Tensor total = empty({2 * cols}, DType::f32, stream.device);
    if (rows > 0)
      launch(stream, layer_norm_backward_kernel<T>, dim3(grid_of(blocks, "layer_norm")), dim3(kWarpSize, kRowWarps),
             static_cast<size_t>(kSharedPerColumn * padded_to_256(cols)), data<T>(dy), data<T>(x), data<float>(gain),
             data<float>(mean), data<float>(rstd), data_or_null<T>(beside.dx_beside), drop_of(beside.mask, x), rows,
             cols, all_aligned(cols, {dy, x, gain, beside.dx_beside, dx, beside.dbranch}), data<T>(dx),
             data_or_null<T>(beside.dbranch), data<float>(partial));
    column_sum(stream, data<float>(partial), blocks, 2 * cols, data<float>(total));
    copy(total.view(0, {cols}), dgain);
    copy(total.view(cols, {cols}), dbias);
  });
}

}  // namespace lacuna::gpu

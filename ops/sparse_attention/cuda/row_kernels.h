#pragma once
// Attention row by row on a GPU, in f32, bf16 and f16: what a launch takes. These kernels follow the equations without
// tensor cores. They compute f32, and whatever the kernels of tile_kernels.h do not.

#include "core/cuda/kernel.h"
#include "ops/sparse_attention/cuda/launches.h"

namespace lacuna::gpu {

/// T is float, __nv_bfloat16 or __half.
template <class T>
struct AttentionRows {
  BandTable table;  // with all bands of its heads
  HeadRows<const T> q, k, v;
  HeadRows<T> o;  // written by forward, read by backward
  HeadRows<const T> d_o;
  HeadRows<T> dq, dk, dv;
  float *lse, *delta;  // [batch, n_heads, n]
  int64_t n, n_heads;
  int d_qk, d_v;
  float scale;  // 1 / sqrt(d_qk)
};

/// o and lse.
template <class T>
void forward_rows(Stream stream, const AttentionRows<T>& call, int64_t batch);

/// dq, and delta = sum over d_v of d_o * o.
template <class T>
void backward_query_rows(Stream stream, const AttentionRows<T>& call, int64_t batch);

/// dk and dv, from delta.
template <class T>
void backward_key_rows(Stream stream, const AttentionRows<T>& call, int64_t batch);

/// Numbers of one head's row at most, d_qk and d_v together: a row of sums for each of four warps in shared memory.
inline constexpr int kMaxRowWidth = 2048;

}  // namespace lacuna::gpu

#pragma once
// Attention row by row on a GPU, in f32, bf16 and f16: what a launch takes. These kernels follow the equations without
// tensor cores. They compute f32, and whatever the kernels of tile_kernels.h do not.

#include "core/cuda/kernel.h"
#include "ops/sparse_attention/cuda/launches.h"

namespace lacuna::gpu {

// The tables have all bands of their heads, and nothing is joined.

/// o and lse.
template <class T>
void forward_rows(Stream stream, const BandLaunch<T>& call);

/// dq, and delta = sum over d_v of d_o * o.
template <class T>
void backward_query_rows(Stream stream, const BandLaunch<T>& call);

/// dk and dv, from delta.
template <class T>
void backward_key_rows(Stream stream, const BandLaunch<T>& call);

/// Numbers of one head's row at most, d_qk and d_v together: a row of sums for each of four warps in shared memory.
inline constexpr int kMaxRowWidth = 2048;

}  // namespace lacuna::gpu

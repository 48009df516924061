#pragma once
// The tensor-core kernels of attention, in bf16 and f16: what a launch takes.

#include "core/cuda/kernel.h"
#include "ops/sparse_attention/cuda/launches.h"

namespace lacuna::gpu {

/// Widths of a head that the kernels are compiled for: the first pair that holds a call's is used.
///
///   32, 32     ImageNet64, and narrower heads
///   64, 64     enwik8, music
///   64, 128    CIFAR-10, whose queries and keys have half the width
///   128, 128   all others
///
/// Calls body.operator()<kQk, kV>().
template <class Body>
void with_widths(int d_qk, int d_v, const Body& body) {
  if (d_qk <= 32 && d_v <= 32) return body.template operator()<32, 32>();
  if (d_qk <= 64 && d_v <= 64) return body.template operator()<64, 64>();
  if (d_qk <= 64) return body.template operator()<64, 128>();
  body.template operator()<128, 128>();
}

inline constexpr int kMaxTileWidth = 128;
inline constexpr int kTile = 64;  // rows of a tile

/// T is __nv_bfloat16 or __half; d_qk and d_v are multiples of 8 up to kMaxTileWidth, rows start at multiples of 16
/// bytes, and the table's bands of a head share their groups.
template <class T>
void forward_tiles(Stream stream, const BandLaunch<T>& call);

/// The same with wgmma and the copy unit of sm_90a, where hopper_computes() says that it can and is worth it: on
/// compute capability 9.0, width 64, without `joins`, at most 4 bands of a head, whose queries are all positions and
/// whose keys are runs of a divisor of 128 positions; 256 keys or more for the last query.
template <class T>
void hopper_forward(Stream stream, const BandLaunch<T>& call);
template <class T>
bool hopper_computes(Device device, const BandLaunch<T>& call);

/// dq, and delta without `joins`, of bands that share their groups.
template <class T>
void backward_query_tiles(Stream stream, const BandLaunch<T>& call);

/// dk and dv, of one band per head, of which every key belongs to one group.
template <class T>
void backward_key_tiles(Stream stream, const BandLaunch<T>& call);

/// o and lse, and all gradients in one launch, of heads that fall apart into columns of at most max_column_rows rows:
/// what the shared memory of a block has room for.
template <class T>
void forward_columns(Stream stream, const ColumnLaunch<T>& call);
template <class T>
void backward_columns(Stream stream, const ColumnLaunch<T>& call);
int64_t max_column_rows(Device device, int d_qk, int d_v);

/// All gradients in one launch, of heads with sliding windows, where a block has the shared memory for them: not with
/// d_qk over 64.
template <class T>
void backward_sliding(Stream stream, const SlidingLaunch<T>& call);
bool sliding_fits(Device device, int d_qk, int d_v);

}  // namespace lacuna::gpu

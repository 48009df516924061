#pragma once
// Tiled f32 attention of one head on the CPU, compiled once per instruction set and chosen at run time.

#include <cstdint>

#include "ops/sparse_attention/parts.h"

namespace lacuna::cpu {

/// Queries that share one pass over packed keys in forward, and keys that share one pass over queries in backward.
inline constexpr int64_t kSlice = 256;

/// One head of one batch entry: pointers to its element 0 at position 0, and the distance between positions.
struct HeadSequence {
  int64_t n, d_qk, d_v, row_qk, row_v;
  const float *q, *k, *v;
  float *o, *lse;  // lse [n]

  const float *d_o = nullptr, *delta = nullptr;  // delta [n]: sum over d_v of d_o * o
  float *dq = nullptr, *dk = nullptr, *dv = nullptr;
};

/// The instruction set in use, by Highway's name: AVX3, AVX2, ...
const char* tile_target();

/// Floats of scratch that the functions below need, aligned to 64 bytes.
int64_t tile_scratch_floats(int64_t d_qk, int64_t d_v);

/// o and lse of the queries [rows.begin, rows.end), at most kSlice of them, of a group of the part. With `merge`, o and
/// lse hold the result of earlier parts, and this part joins them in one softmax.
void forward_slice(const HeadSequence& head, const Part& part, int64_t group, Range rows, bool merge, float* scratch);

/// Adds to dq, dk and dv what the pairs of the queries `rows` and the keys `keys`, both of one group, contribute.
void backward_slab(const HeadSequence& head, const Part& part, int64_t group, Range rows, Range keys, float* scratch);

}  // namespace lacuna::cpu

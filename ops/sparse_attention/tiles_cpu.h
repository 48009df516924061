#pragma once
// Tiled attention of one head on the CPU, in f32 arithmetic, compiled once per instruction set and chosen at run time.

#include <cstdint>

#include "core/dtype.h"
#include "ops/sparse_attention/parts.h"

namespace lacuna::cpu {

/// Queries whose softmax is under way at once in forward: they share one pass over packed keys.
inline constexpr int64_t kSlice = 256;

/// Most rows that a task of several heads takes, of all its heads together.
inline constexpr int64_t kGathered = 128;

/// The rows of one head in a tensor: `width` elements at `data` for position 0, `distance` elements from one position
/// to the next.
struct Rows {
  const void* data;
  DType dtype;  // f32, bf16 or f16
  int64_t distance, width;
  bool packed = false, finite = false;  // ready for the products as they lie; whether packed ones are all finite
};

struct ResultRows {
  float* data;
  int64_t distance, width;
  bool packed = false;  // the products' own sums, not scaled
};

/// One head of one batch entry.
struct HeadSequence {
  int64_t n;
  Rows q, k, v;
  float* lse;  // [n]

  ResultRows o;  // of forward

  Rows saved_o, d_o;  // of backward
  float* delta;       // [n]: sum over d_v of d_o * o
  ResultRows dq, dk, dv;
};

/// The instruction set in use, by Highway's name: AVX3, AVX2, ...
const char* tile_target();

/// Floats of scratch that the functions below need, aligned to 64 bytes.
int64_t tile_scratch_floats(int64_t d_qk, int64_t d_v);

/// o and lse of the queries `rows`, at most kSlice of them, of a group of the part. With `merge`, o and lse hold the
/// result of earlier parts, and this part joins them in one softmax. A task of several heads has all rows of the group.
struct ForwardTask {
  HeadSequence head;
  int64_t heads;  // this one and those after it, whose rows follow each other
  const Part* part;
  int64_t group;
  Range rows;
  bool merge;
};

/// What a task meets first, and so begins: dq and delta of its queries, dk and dv of its keys.
struct Begins {
  bool queries, keys;
};

/// Adds to dq, dk and dv what the pairs of the queries `rows` and the keys `keys`, both of one group, contribute.
struct BackwardTask {
  HeadSequence head;
  int64_t heads;  // as above
  const Part* part;
  int64_t group;
  Range rows, keys;
  Begins begins;
};

/// `next`, if not null, is what will probably run next: its rows are fetched into the caches meanwhile.
void forward_slice(const ForwardTask& task, const ForwardTask* next, float* scratch);
void backward_block(const BackwardTask& task, const BackwardTask* next, float* scratch);

}  // namespace lacuna::cpu

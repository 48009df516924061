#pragma once
// How the work of a call is cut into launches, and what a launch carries.

#include <atomic>
#include <cstdint>
#include <vector>

#include "ops/sparse_attention/cuda/bands.h"
#include "ops/sparse_attention/cuda/columns.h"
#include "ops/sparse_attention/cuda/sliding.h"

namespace lacuna {
struct AttentionProblem;
}

namespace lacuna::gpu {

/// The bands of one head: bands[first], ... of a BandTable. The launch computes those from `begin` up to `end`, counted
/// from `first`.
struct HeadBands {
  int16_t head = 0, first = 0, begin = 0, end = 0;
};

inline constexpr int kMaxHeads = 64;  // of one launch

/// The heads of one launch and their bands; heads alike share them. It travels in the parameters of the kernel, of
/// which there are at most 4 KiB.
struct BandTable {
  Band bands[kMaxBands];
  HeadBands heads[kMaxHeads];
  int n_bands = 0, n_heads = 0;
  int64_t tiles = 0;  // of the head that has the most
};

/// Which bands of a head one launch computes.
enum class Cut {
  head,     // all
  queries,  // a run of bands that share the groups of their queries; a tile holds queries
  keys,     // one; a tile holds keys
};

/// All launches of a call, in order: passes[m] are those of the m-th cut of every head that has one with rows. Heads
/// without parts have none. Throws Error when a head has more than kMaxBands bands, or positions do not fit 31 bits.
std::vector<std::vector<BandTable>> passes_of(const AttentionProblem& problem, Cut cut, int64_t rows_per_tile);

/// Whether no key belongs to two groups of any band.
bool keys_have_one_group(const AttentionProblem& problem);

/// Whether every position is a key of some group of the first band of every head.
bool first_bands_have_all_keys(const AttentionProblem& problem);

/// Heads of one launch that fall apart into the same columns.
struct ColumnTable {
  Columns columns;
  int16_t heads[kMaxHeads];
  int n_heads = 0;
};

/// Takes the heads that fall apart into columns of at most `max_rows` rows out of a call: they have no parts any more.
/// Throws as passes_of does.
std::vector<ColumnTable> take_columns(AttentionProblem& problem, int64_t max_rows);

/// Heads of one launch with the same sliding window.
struct SlidingTable {
  View view;
  int16_t heads[kMaxHeads];
  int n_heads = 0;
};

/// Takes the heads that sliding_view_of() knows out of a call: they have no parts any more.
std::vector<SlidingTable> take_sliding(AttentionProblem& problem);

/// Numbers [batch, n, n_heads, width] by strides in elements; the width is dense.
template <class T>
struct HeadRows {
  T* data = nullptr;
  int64_t batch = 0, token = 0, head = 0;

  LACUNA_HOST_DEVICE T* of(int64_t b, int64_t h) const { return data + b * batch + h * head; }
};

/// The tensors and sizes of a call, as every kernel takes them. T is float, __nv_bfloat16 or __half. Forward reads q, k
/// and v and writes o and lse; backward reads those and d_o, and writes dq, dk and dv.
template <class T>
struct AttentionCall {
  HeadRows<const T> q, k, v, d_o;
  HeadRows<T> o, dq, dk, dv;
  float *lse, *delta;  // [batch, n_heads, n]; delta = sum over d_v of d_o * o
  int64_t batch, n, n_heads;
  int d_qk, d_v;
  float scale;  // 1 / sqrt(d_qk)
};

/// A launch for the bands of `table`. With `joins` the results hold what earlier bands gave, and these join them: o and
/// lse in one softmax, gradients as a sum. Else they are written.
template <class T>
struct BandLaunch : AttentionCall<T> {
  BandTable table;
  bool joins = false;
};

/// Launches of hopper_forward() by this process: results do not show which kernel computed them.
inline std::atomic<int64_t> hopper_launches = 0;

/// A launch for the columns of `table`.
template <class T>
struct ColumnLaunch : AttentionCall<T> {
  ColumnTable table;
};

/// A launch for the windows of `table`.
template <class T>
struct SlidingLaunch : AttentionCall<T> {
  SlidingTable table;
  int64_t segment = 0;  // tiles of rows that a block owns
  bool ahead = false;   // whether there is room to bring the next tiles a whole tile's work ahead
};

}  // namespace lacuna::gpu

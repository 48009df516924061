#pragma once
// Attention of one new position over the keys and values before it, for sampling.

#include <vector>

#include "core/tensor.h"
#include "ops/sparse_attention/parts.h"
#include "ops/sparse_attention/tensor_columns.h"

namespace lacuna {

/// Adds 1 to a position, i64 [1].
void advance(const Tensor& position);

/// The keys and values of one layer that later queries can still reach, filled position by position.
///
/// Each part (parts.h) of a head's union has rows of its own, a ring for every group of the part's view. Query i reads
/// the elements keys_of(group, i) of its group's key list. Neither end of that range ever moves back, so elements from
/// `used` = keys_of(0, n_ctx - 1).end on are never read, and a ring holds the others: element t of group g is row
/// g * capacity + t % capacity, where
///
///   capacity = min(used, the most key elements among min(window, segment) consecutive positions)
///
/// No pattern is named here; what follows from its view is, per head,
///
///   local          the last `window` positions
///   fixed_block    the positions of the current block
///   fixed_summary  the summary columns, c rows for every `stride` positions
///   column         all positions, for all stay in reach, but those that one query reads in consecutive rows
///   dense          all positions
///
/// In a union a position is kept once for each part through which it is read.
class DecodeCache {
 public:
  /// For up to n_ctx positions of `batch` sequences in f32 or f64, on a GPU in f32. `position`, i64 [1] on the device,
  /// is the one that append() takes and attend() asks from; its owner advances it between the two of one position and
  /// those of the next, so that kernels recorded once can be replayed there. Without it the cache counts by itself.
  /// Throws UsageError for an invalid pattern and Error for sizes below 1 or another dtype.
  DecodeCache(const LayerPattern& pattern, int64_t n_heads, int64_t n_ctx, int64_t batch, int64_t d_qk, int64_t d_v,
              DType dtype, Device device = kCpu, const Tensor& position = {});

  /// Takes keys [batch, n_heads * d_qk] and values [batch, n_heads * d_v] of the next position. Throws Error when they
  /// do not fit the cache or n_ctx positions were taken.
  void append(const TensorColumns& k, const TensorColumns& v);

  /// Row length() - 1 of sparse_attention: [batch, n_heads * d_v], the output of the query q [batch, n_heads * d_qk] at
  /// the position appended last. Throws Error before the first append and when q does not fit.
  Tensor attend(const TensorColumns& q) const;

  /// Takes back the positions from `length` on, of which no kernel has run.
  void rewind(int64_t length) { length_ = length; }

  /// Positions appended so far.
  int64_t length() const { return length_; }

  /// Of the keys and values of all sequences: batch * rows_of(...) * (d_qk + d_v) elements.
  int64_t bytes() const;

  /// Positions kept for one sequence, summed over the heads; n_heads * n_ctx if all were. Allocates nothing.
  static int64_t rows_of(const LayerPattern& pattern, int64_t n_heads, int64_t n_ctx);

  /// The rows of one part of a head's union.
  struct Store {
    Part part;
    int64_t first_row = 0;  // among the rows of a sequence
    int64_t used = 0;       // elements of a group's key list that are ever read
    int64_t capacity = 0;   // rows of the ring of each group
  };

 private:
  void check_rows(const char* name, const TensorColumns& x, int64_t width) const;

  int64_t n_ctx_, d_qk_, d_v_, length_ = 0;
  bool counts_;      // by itself
  Tensor position_;  // i64 [1]
  std::vector<std::vector<Store>> heads_;
  Tensor k_, v_;  // [batch, rows, d_qk], [batch, rows, d_v]
};

}  // namespace lacuna

#pragma once
// Attention of one new position over the keys and values before it, for sampling.

#include <vector>

#include "core/tensor.h"
#include "ops/sparse_attention/view.h"

namespace lacuna {

/// The keys and values of one layer that later queries can still reach, filled position by position.
///
/// Each part (view.h) of a head's union has rows of its own, a ring for every group of the part's view. Query i reads
/// the elements [rank(first_position(i)), rank(i + 1)) of its group's key list. Neither end ever moves back, so a ring
/// as long as that interval can get holds them: element t of group g is row g * capacity + t % capacity, where
///
///   capacity = key elements among the first n_ctx positions, or among min(window, segment) consecutive ones, if fewer
///
/// No pattern is named here; what follows from its view is, per head,
///
///   local          the last `window` positions
///   fixed_block    the positions of the current block
///   fixed_summary  the summary columns, c rows for every `stride` positions
///   column         all positions, for all stay in reach, but those that one query reads in consecutive rows
///   dense          all positions
///
/// A union keeps the rows of each of its parts, so a position that two parts reach is there twice.
class DecodeCache {
 public:
  /// For up to n_ctx positions of `batch` sequences in f32 or f64. Throws UsageError for an invalid pattern and Error
  /// for sizes below 1, another dtype or a device without this operation.
  DecodeCache(const LayerPattern& pattern, int64_t n_heads, int64_t n_ctx, int64_t batch, int64_t d_qk, int64_t d_v,
              DType dtype, Device device = kCpu);

  /// Takes keys [batch, n_heads * d_qk] and values [batch, n_heads * d_v] of the next position. Throws Error when they
  /// do not fit the cache or n_ctx positions were taken.
  void append(const Tensor& k, const Tensor& v);

  /// Row length() - 1 of sparse_attention: [batch, n_heads * d_v], the output of the query q [batch, n_heads * d_qk] at
  /// the position appended last. Throws Error before the first append and when q does not fit.
  Tensor attend(const Tensor& q) const;

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
    int64_t capacity = 0;   // of the ring of each group
  };

 private:
  void check_rows(const char* name, const Tensor& x, const Shape& shape) const;

  int64_t n_ctx_, d_qk_, d_v_, length_ = 0;
  std::vector<std::vector<Store>> heads_;
  Tensor k_, v_;  // [batch, rows, d_qk], [batch, rows, d_v]
};

}  // namespace lacuna

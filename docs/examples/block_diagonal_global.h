#pragma once
// A pattern of one's own: earlier positions of the same block, and the first few positions of the sequence.

#include "ops/sparse_attention/pattern_type.h"

struct BlockDiagonalGlobal {
  int64_t block = 0, n_global = 1;

  static constexpr std::string_view name = "block_diagonal_global";
  static std::vector<lacuna::Field<BlockDiagonalGlobal>> fields() {
    return {{"block", &BlockDiagonalGlobal::block}, {"n_global", &BlockDiagonalGlobal::n_global, /*required=*/false}};
  }
  void check() const {
    lacuna::check_usage(n_global <= block, name, ": n_global must be at most block, got ", n_global, " > ", block);
  }

  bool operator()(int64_t i, int64_t j) const { return j <= i && (j / block == i / block || j < n_global); }

  std::vector<lacuna::View> views() const {
    lacuna::View diagonal, global;
    diagonal.segment = block;
    global.key_end = n_global;
    return {diagonal, global};
  }

  friend bool operator==(const BlockDiagonalGlobal&, const BlockDiagonalGlobal&) = default;
};

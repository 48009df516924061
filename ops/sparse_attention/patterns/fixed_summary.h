#pragma once

#include "ops/sparse_attention/pattern_type.h"

namespace lacuna {

/// The second head of the fixed pattern, Sec. 4.2: c columns of every block of `stride`. Head h takes sub-block
/// h mod sub_blocks, counted from the end of the block (Sec. 4.2 asks for distinct sub-blocks; released code).
struct FixedSummary {
  int64_t stride = 0, c = 0, sub_blocks = 1;
  int64_t sub_block = 0;  // of this head; set by for_head()

  static constexpr std::string_view name = "fixed_summary";
  static std::vector<Field<FixedSummary>> fields() {
    return {{"stride", &FixedSummary::stride},
            {"c", &FixedSummary::c},
            {"sub_blocks", &FixedSummary::sub_blocks, /*required=*/false}};
  }
  void check() const {
    check_usage(c <= stride / sub_blocks, name, ": c * sub_blocks must be at most stride, got ", c, " * ", sub_blocks,
                " > ", stride);
  }
  void check_heads(int64_t n_heads) const {
    check_usage(n_heads % sub_blocks == 0, name, ": n_heads must be a multiple of sub_blocks, got ", n_heads,
                " heads and sub_blocks ", sub_blocks);
  }
  FixedSummary for_head(int64_t h) const { return {stride, c, sub_blocks, h % sub_blocks}; }

  LACUNA_HOST_DEVICE bool operator()(int64_t i, int64_t j) const {
    const int64_t end = stride - sub_block * c;
    return j <= i && j % stride >= end - c && j % stride < end;
  }
  std::vector<View> views() const {
    View view;
    view.keys_of_group_0 = {stride - (sub_block + 1) * c, stride, c};
    return {view};
  }

  friend bool operator==(const FixedSummary&, const FixedSummary&) = default;
};

}  // namespace lacuna

#pragma once

#include "ops/sparse_attention/pattern_type.h"

namespace lacuna {

/// The second head of the strided pattern, Sec. 4.2: positions a multiple of `stride` back.
struct Column {
  int64_t stride = 0;

  static constexpr std::string_view name = "column";
  static std::vector<Field<Column>> fields() { return {{"stride", &Column::stride}}; }

  LACUNA_HOST_DEVICE bool operator()(int64_t i, int64_t j) const { return j <= i && (i - j) % stride == 0; }
  std::vector<View> views() const {
    View view;
    view.residues = stride;
    view.keys_of_group_0 = {0, stride, 1};
    return {view};
  }

  friend bool operator==(const Column&, const Column&) = default;
};

}  // namespace lacuna

#pragma once

#include "ops/sparse_attention/pattern_type.h"

namespace lacuna {

/// The first head of the fixed pattern, Sec. 4.2: earlier positions of the same block of `stride`.
struct FixedBlock {
  int64_t stride = 0;

  static constexpr std::string_view name = "fixed_block";
  static std::vector<Field<FixedBlock>> fields() { return {{"stride", &FixedBlock::stride}}; }

  LACUNA_HOST_DEVICE bool operator()(int64_t i, int64_t j) const { return j <= i && j / stride == i / stride; }
  std::vector<View> views() const {
    View view;
    view.segment = stride;
    return {view};
  }

  friend bool operator==(const FixedBlock&, const FixedBlock&) = default;
};

}  // namespace lacuna

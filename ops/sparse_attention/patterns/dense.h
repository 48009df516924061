#pragma once

#include "ops/sparse_attention/pattern_type.h"

namespace lacuna {

/// Every earlier position.
struct Dense {
  static constexpr std::string_view name = "dense";
  static std::vector<Field<Dense>> fields() { return {}; }

  LACUNA_HOST_DEVICE bool operator()(int64_t i, int64_t j) const { return j <= i; }
  std::vector<View> views() const { return {View{}}; }

  friend bool operator==(const Dense&, const Dense&) = default;
};

}  // namespace lacuna

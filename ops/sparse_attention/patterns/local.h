#pragma once

#include "ops/sparse_attention/pattern_type.h"

namespace lacuna {

/// Sliding window: the last `window` positions, i among them. The released code has window = stride; the formula of
/// Sec. 4.2 is window = stride + 1.
struct Local {
  int64_t window = 0;

  static constexpr std::string_view name = "local";
  static std::vector<Field<Local>> fields() { return {{"window", &Local::window}}; }

  LACUNA_HOST_DEVICE bool operator()(int64_t i, int64_t j) const { return j <= i && i - j < window; }
  std::vector<View> views() const {
    View view;
    view.window = window;
    return {view};
  }

  friend bool operator==(const Local&, const Local&) = default;
};

}  // namespace lacuna

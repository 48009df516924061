#pragma once

#include "ops/sparse_attention/pattern_type.h"

namespace lacuna {

/// Dilated sliding window: `window` positions, i the last of them, `dilation` apart. Source: Beltagy et al. 2020
/// (Longformer).
struct Dilated {
  int64_t window = 0, dilation = 0;

  static constexpr std::string_view name = "dilated";
  static std::vector<Field<Dilated>> fields() {
    return {{"window", &Dilated::window}, {"dilation", &Dilated::dilation}};
  }
  void check() const {
    check_usage(window <= kLargestField / dilation, name, ": window * dilation must be at most ", kLargestField,
                ", got ", window, " * ", dilation);
  }

  LACUNA_HOST_DEVICE bool operator()(int64_t i, int64_t j) const {
    return j <= i && (i - j) % dilation == 0 && (i - j) / dilation < window;
  }
  std::vector<View> views() const {
    View view;
    view.residues = dilation;
    view.keys_of_group_0 = {0, dilation, 1};
    view.window = (window - 1) * dilation + 1;
    return {view};
  }

  friend bool operator==(const Dilated&, const Dilated&) = default;
};

}  // namespace lacuna

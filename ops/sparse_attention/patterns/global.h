#pragma once

#include "ops/sparse_attention/pattern_type.h"

namespace lacuna {

/// Global prefix: the first `n` positions, for every later query. Source: Beltagy et al. 2020 (Longformer); its global
/// queries, which look at everything, are Dense heads.
struct Global {
  int64_t n = 0;

  static constexpr std::string_view name = "global";
  static std::vector<Field<Global>> fields() { return {{"n", &Global::n}}; }

  LACUNA_HOST_DEVICE bool operator()(int64_t i, int64_t j) const { return j <= i && j < n; }
  std::vector<View> views() const {
    View view;
    view.key_end = n;
    return {view};
  }

  friend bool operator==(const Global&, const Global&) = default;
};

}  // namespace lacuna

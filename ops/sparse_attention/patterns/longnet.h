#pragma once

#include "ops/sparse_attention/pattern_type.h"

namespace lacuna {

/// LongNet's dilated segments: for every (w, r), the earlier positions of the same segment of w that are a multiple of
/// r back. The paper computes a softmax for every (w, r) and mixes the outputs by their denominators; that is one
/// softmax in which a key counts once for every (w, r) that has it. Here every position is a query of every (w, r); the
/// paper gives head h only the queries and keys at h mod r. Source: Ding et al. 2023, eq. 2-11.
struct LongNet {
  std::vector<int64_t> w, r;

  static constexpr std::string_view name = "longnet";
  static std::vector<Field<LongNet>> fields() { return {{"w", &LongNet::w}, {"r", &LongNet::r}}; }
  void check() const {
    check_usage(w.size() == r.size(), name, ": w and r must have equally many numbers, got ", w.size(), " and ",
                r.size());
    for (size_t k = 0; k < w.size(); ++k)
      check_usage(w[k] % r[k] == 0, name, ": each w must be a multiple of its r, got w ", w[k], " and r ", r[k]);
  }

  int64_t multiplicity(int64_t i, int64_t j) const {
    int64_t count = 0;
    for (size_t k = 0; k < w.size(); ++k) count += j <= i && j / w[k] == i / w[k] && (i - j) % r[k] == 0;
    return count;
  }
  bool operator()(int64_t i, int64_t j) const { return multiplicity(i, j) > 0; }
  std::vector<View> views() const {
    std::vector<View> views;
    for (size_t k = 0; k < w.size(); ++k) {
      View& view = views.emplace_back();
      view.residues = r[k];
      view.keys_of_group_0 = {0, r[k], 1};
      view.segment = w[k];
    }
    return views;
  }

  friend bool operator==(const LongNet&, const LongNet&) = default;
};

}  // namespace lacuna

#pragma once
// A pair that is wrong.

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>

#include "core/error.h"
#include "ops/sparse_attention/analysis/reach.h"

namespace lacuna {

/// A pair that should count `needed` times and counts `got` times.
struct Violation {
  PositionPair pair;
  int64_t needed = 0, got = 0;

  /// `whose`: who has the pair `got` times.
  std::string in_words(std::string_view whose) const {
    const auto [i, j] = pair;
    if (j > i && needed > 0) return concat("not causal: query ", i, " attends to key ", j, ", which comes after it");
    if (needed > 0 && got == 0)
      return concat("missing pair: query ", i, " attends to key ", j, ", and ", whose, " leave it out");
    if (needed == 0) return concat("wrong pair: query ", i, " does not attend to key ", j, ", and ", whose, " have it");
    return concat(got > needed ? "double" : "missing", " pair: query ", i, " counts key ", j, " ", needed, "x, ", whose,
                  " ", got, "x");
  }
};

/// The first of the violations that several threads find.
class FirstViolation {
 public:
  void add(const Violation& violation) {
#pragma omp critical(lacuna_first_violation)
    if (!first_ || violation.pair < first_->pair) first_ = violation;
  }
  std::optional<std::string> in_words(std::string_view whose) const {
    if (!first_) return {};
    return first_->in_words(whose);
  }

 private:
  std::optional<Violation> first_;
};

}  // namespace lacuna

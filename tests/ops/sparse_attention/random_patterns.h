#pragma once
// Random attention patterns for property tests.

#include <rapidcheck.h>

#include <numeric>

#include "ops/sparse_attention/pattern.h"

namespace lacuna {

/// Any band that a view can describe, as a pattern that somebody might add. The fields are those of View; the keys of
/// group 0 begin at `from` - 1. random_band() gives groups no key in common, as views must.
struct AnyBand {
  int64_t residues = 1, from = 1, period = 1, width = 1;
  int64_t window = kLargestField, segment = kLargestField, key_end = kLargestField;

  static constexpr std::string_view name = "any_band";
  static std::vector<Field<AnyBand>> fields() {
    return {{"residues", &AnyBand::residues}, {"from", &AnyBand::from},       {"period", &AnyBand::period},
            {"width", &AnyBand::width},       {"window", &AnyBand::window},   {"segment", &AnyBand::segment},
            {"key_end", &AnyBand::key_end}};
  }

  bool operator()(int64_t i, int64_t j) const {
    const int64_t behind = j - (from - 1) - i % residues;
    return j <= i && i - j < window && j / segment == i / segment && j < key_end && behind >= 0 &&
           behind % period < width;
  }
  std::vector<View> views() const {
    return {{residues, {from - 1, period, width}, window, segment, key_end == kLargestField ? kUnbounded : key_end}};
  }

  friend bool operator==(const AnyBand&, const AnyBand&) = default;
};

inline const bool kAnyBandIsKnown = (register_pattern<AnyBand>(), true);

inline AnyBand random_band(int64_t largest) {
  const auto field = [=] { return *rc::gen::inRange<int64_t>(1, largest + 1); };
  const auto rarely = [=] { return *rc::gen::inRange(0, 3) == 0 ? field() : kLargestField; };
  AnyBand p;
  p.residues = *rc::gen::inRange<int64_t>(1, 7);
  p.from = *rc::gen::inRange<int64_t>(1, 9);
  p.width = p.residues == 1 ? *rc::gen::inRange<int64_t>(1, 5) : 1;
  p.period = p.residues == 1 ? p.width + *rc::gen::inRange<int64_t>(0, 9) : p.residues * *rc::gen::inRange<int64_t>(1, 4);
  p.window = rarely();
  p.segment = rarely();
  p.key_end = rarely();
  return p;
}

inline int64_t random_divisor(int64_t n) { return std::gcd(n, *rc::gen::inRange<int64_t>(1, n + 1)); }

/// Any one pattern with fields up to about `largest`.
inline Pattern random_pattern(int64_t largest, int64_t n_heads) {
  const auto field = [=] { return *rc::gen::inRange<int64_t>(1, largest + 1); };
  switch (*rc::gen::inRange(0, 9)) {
    case 0: return Dense{};
    case 1: return Local{field()};
    case 2: return Column{field()};
    case 3: return FixedBlock{field()};
    case 4: return Global{field()};
    case 5: return Dilated{field(), *rc::gen::inRange<int64_t>(1, 7)};
    case 6: return random_band(largest);
    case 7: {
      LongNet p;
      for (int pairs = *rc::gen::inRange(1, 4); pairs > 0; --pairs) {
        p.r.push_back(*rc::gen::inRange<int64_t>(1, 7));
        p.w.push_back(p.r.back() * (1 + field() / p.r.back()));
      }
      return p;
    }
    default: {
      FixedSummary p;
      p.sub_blocks = random_divisor(n_heads);
      p.c = field();
      p.stride = p.c * p.sub_blocks + *rc::gen::inRange<int64_t>(0, largest + 1);
      return p;
    }
  }
}

inline PatternUnion random_union(int64_t largest, int64_t n_heads) {
  PatternUnion patterns;
  for (int count = *rc::gen::inRange(1, 4); count > 0; --count) patterns.push_back(random_pattern(largest, n_heads));
  return patterns;
}

/// A layer for `n_heads` heads, merged or split or both.
inline LayerPattern random_layer(int64_t largest, int64_t n_heads) {
  LayerPattern layer;
  for (int64_t splits = random_divisor(n_heads); splits > 0; --splits)
    layer.heads.push_back(random_union(largest, n_heads));
  return layer;
}

}  // namespace lacuna

#pragma once
// Random attention patterns for property tests.

#include <rapidcheck.h>

#include <numeric>

#include "ops/sparse_attention/pattern.h"

namespace lacuna {

inline int64_t random_divisor(int64_t n) { return std::gcd(n, *rc::gen::inRange<int64_t>(1, n + 1)); }

/// Any one pattern with fields up to about `largest`.
inline Pattern random_pattern(int64_t largest, int64_t n_heads) {
  const auto field = [=] { return *rc::gen::inRange<int64_t>(1, largest + 1); };
  switch (*rc::gen::inRange(0, 8)) {
    case 0: return Dense{};
    case 1: return Local{field()};
    case 2: return Column{field()};
    case 3: return FixedBlock{field()};
    case 4: return Global{field()};
    case 5: return Dilated{field(), *rc::gen::inRange<int64_t>(1, 7)};
    case 6: {
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

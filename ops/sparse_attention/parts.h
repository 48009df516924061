#pragma once
// A union of patterns as the kernels compute it: one band after the other, joined in one softmax.

#include <algorithm>
#include <vector>

#include "ops/sparse_attention/pattern.h"

namespace lacuna {

/// One view of a union, less what the parts before it cover, so that parts never share a pair (except the views of a
/// pattern with multiplicities, which are all summed).
struct Part {
  View view;
  std::vector<View> contiguous_before;  // earlier parts whose keys end at the query: they cut the end of the band
  int64_t prefix_before = 0;            // earlier parts have all keys before this position: it cuts the beginning
  std::vector<View> scattered_before;   // earlier parts of any other kind: their pairs are skipped

  friend bool operator==(const Part&, const Part&) = default;

  /// The indices, in the key list of `group`, of the keys of query position i. Both ends are monotone in i.
  Range keys_of(int64_t group, int64_t i) const {
    int64_t end = std::min(i + 1, view.key_end);
    for (const View& earlier : contiguous_before) end = std::min(end, earlier.first_position(i));
    const Strip keys = view.keys(group);
    const int64_t begin = keys.rank(std::max(prefix_before, view.first_position(i)));
    return {begin, std::max(begin, keys.rank(end))};
  }

  /// Whether an earlier part that is neither contiguous nor a prefix has the pair of positions (i, j).
  bool skips(int64_t i, int64_t j) const {
    return std::any_of(scattered_before.begin(), scattered_before.end(), [=](const View& v) { return v.has(i, j); });
  }
};

/// The union as parts that cover each of its pairs as often as multiplicity() says. Patterns with multiplicities come
/// first, then contiguous parts, prefixes, and all others: what can cut a band goes before what it cuts.
std::vector<Part> parts_of(const PatternUnion& patterns);

/// Calls fn(j) for every key position j of query position i, as often as its multiplicity.
template <class Fn>
void for_each_key(const std::vector<Part>& parts, int64_t i, const Fn& fn) {
  for (const Part& part : parts) {
    const int64_t group = i % part.view.residues;
    const Strip keys = part.view.keys(group);
    const Range range = part.keys_of(group, i);
    for (int64_t t = range.begin; t < range.end; ++t) {
      const int64_t j = keys.position(t);
      if (!part.skips(i, j)) fn(j);
    }
  }
}

}  // namespace lacuna

#pragma once
// How kernels see a pattern: rows taken through a view, a list of keys, and for each query one interval of that list.
//
// Seen through the right view every pattern is a band: the queries split into groups of equal residue, the keys of a
// group are a regular subset of the positions (a Strip), and a query meets a contiguous run of them whose two ends
// never move back from one query to the next. Tiles, masks and work therefore follow from closed forms; nothing is
// stored per pair or per block.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "ops/sparse_attention/pattern.h"

namespace lacuna {

inline constexpr int64_t kUnbounded = std::numeric_limits<int64_t>::max();

/// Positions at regular places: `width` consecutive ones at the start of every `period`, from `first` on.
struct Strip {
  int64_t first = 0;
  int64_t period = 1;
  int64_t width = 1;

  /// The position of element t.
  LACUNA_HOST_DEVICE int64_t position(int64_t t) const {
    return width == 1 ? first + t * period : first + t / width * period + t % width;
  }

  /// How many elements lie before position p: the index of the first element at or after it.
  LACUNA_HOST_DEVICE int64_t rank(int64_t p) const {
    const int64_t x = p - first;
    if (x <= 0) return 0;
    if (period == 1) return x;
    return x / period * width + (x % period < width ? x % period : width);
  }
};

/// A half-open run of indices.
struct Range {
  int64_t begin = 0, end = 0;
  LACUNA_HOST_DEVICE bool empty() const { return begin >= end; }
};

/// A pattern seen so that it is a band. Query i meets the positions of its group's keys in [first_position(i), i].
/// Every position is a query of exactly one group.
struct View {
  int64_t residues = 1;          // group g holds the queries g, g + residues, g + 2 * residues, ...
  Strip keys_of_group_0;         // group g has the same, moved by g
  int64_t window = kUnbounded;   // positions looked back on, the query's own among them
  int64_t segment = kUnbounded;  // nothing before the start of the query's run of `segment` positions

  LACUNA_HOST_DEVICE int64_t groups(int64_t n) const { return residues < n ? residues : n; }
  LACUNA_HOST_DEVICE Strip queries(int64_t group) const { return {group, residues, 1}; }
  LACUNA_HOST_DEVICE Strip keys(int64_t group) const {
    return {keys_of_group_0.first + group, keys_of_group_0.period, keys_of_group_0.width};
  }

  LACUNA_HOST_DEVICE int64_t first_position(int64_t i) const {
    const int64_t begin = i < window ? 0 : i - window + 1;
    const int64_t start = segment == kUnbounded ? 0 : i / segment * segment;
    return begin > start ? begin : start;
  }

  /// Whether the keys are all positions, so that a query meets every position from first_position(i) to itself.
  bool contiguous() const { return residues == 1 && keys_of_group_0.period == keys_of_group_0.width; }
};

/// The view of a pattern; with the predicate in pattern.h, all that a new pattern has to say.
View view_of(const Pattern& pattern);

/// One pattern of a union, less what the parts before it cover, so that parts never share a pair.
struct Part {
  View view;
  std::vector<View> contiguous_before;  // earlier parts whose keys end at the query: they cut the end of the band
  PatternUnion scattered_before;        // earlier parts of any other kind: pairs under their predicate are skipped

  /// The indices, in the key list of `group`, of the keys of query position i. Both ends are monotone in i.
  Range keys_of(int64_t group, int64_t i) const {
    int64_t end = i + 1;
    for (const View& earlier : contiguous_before) end = std::min(end, earlier.first_position(i));
    const Strip keys = view.keys(group);
    const int64_t begin = keys.rank(view.first_position(i));
    return {begin, std::max(begin, keys.rank(end))};
  }

  /// Whether an earlier part that is not contiguous has the pair of positions (i, j).
  bool skips(int64_t i, int64_t j) const { return !scattered_before.empty() && attends(scattered_before, i, j); }
};

/// The union as parts that cover each of its pairs exactly once; contiguous patterns first.
std::vector<Part> parts_of(const PatternUnion& patterns);

/// Calls fn(j) for every key position j of query position i, once each.
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

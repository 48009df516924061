#pragma once
// How kernels see a pattern: rows taken through a view, a list of keys, and for each query one interval of that list.
//
// Seen through the right view every pattern is a band: the queries split into groups of equal residue, the keys of a
// group are a regular subset of the positions (a Strip), and a query meets a contiguous run of them whose two ends
// never move back from one query to the next. Tiles, masks and work therefore follow from closed forms; nothing is
// stored per pair or per block.

#include <cstdint>
#include <limits>

#include "core/rng.h"  // LACUNA_HOST_DEVICE

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

  LACUNA_HOST_DEVICE bool has(int64_t p) const { return p >= first && (p - first) % period < width; }

  friend bool operator==(const Strip&, const Strip&) = default;
};

/// A half-open run of indices.
struct Range {
  int64_t begin = 0, end = 0;
  LACUNA_HOST_DEVICE bool empty() const { return begin >= end; }
};

/// A pattern seen so that it is a band. Query i meets the positions of its group's keys in
/// [first_position(i), i], those from key_end on excepted.
/// Every position is a query of exactly one group.
struct View {
  int64_t residues = 1;          // group g holds the queries g, g + residues, g + 2 * residues, ...
  Strip keys_of_group_0;         // group g has the same, moved by g
  int64_t window = kUnbounded;   // positions looked back on, the query's own among them
  int64_t segment = kUnbounded;  // nothing before the start of the query's run of `segment` positions
  int64_t key_end = kUnbounded;  // only keys before this position

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

  /// The positions in which the keys of query i lie.
  LACUNA_HOST_DEVICE Range span(int64_t i) const {
    return {first_position(i), i + 1 < key_end ? i + 1 : key_end};
  }

  /// The first query i > j for which key j is too far back: first_position(i) > j from there on.
  LACUNA_HOST_DEVICE int64_t end_of_reach(int64_t j) const {
    const int64_t out_of_window = window < kUnbounded - j ? j + window : kUnbounded;
    const int64_t next_segment = segment == kUnbounded ? kUnbounded : (j / segment + 1) * segment;
    return out_of_window < next_segment ? out_of_window : next_segment;
  }

  /// Whether query i meets key j.
  LACUNA_HOST_DEVICE bool has(int64_t i, int64_t j) const {
    return j <= i && j >= first_position(i) && j < key_end && keys(i % residues).has(j);
  }

  /// Whether a query meets every position from first_position(i) to itself.
  bool contiguous() const { return all_positions() && key_end == kUnbounded; }

  /// Whether a query meets every position before key_end, up to itself.
  bool prefix() const { return all_positions() && window == kUnbounded && segment == kUnbounded; }

  /// Whether the keys of a group are the positions of its queries.
  bool queries_are_keys() const { return all_positions() || keys_of_group_0 == queries(0); }

  friend bool operator==(const View&, const View&) = default;

 private:
  bool all_positions() const {
    return residues == 1 && keys_of_group_0.first == 0 && keys_of_group_0.period == keys_of_group_0.width;
  }
};

/// Calls fn(group) for every group of queries below n that has position p among its keys. Group g has it if
/// (p - first - g) mod period < width, so these groups are runs of up to `width` that end a multiple of `period` before
/// p - first.
template <class Fn>
LACUNA_HOST_DEVICE void for_each_group_of(const View& view, int64_t p, int64_t n, const Fn& fn) {
  const Strip& keys = view.keys_of_group_0;
  const int64_t x = p - keys.first;
  if (x < 0) return;
  const int64_t last_group = view.groups(n) - 1 < x ? view.groups(n) - 1 : x;
  for (int64_t end = x % keys.period; end - keys.width < last_group; end += keys.period) {
    const int64_t begin = end < keys.width ? 0 : end - keys.width + 1;
    for (int64_t group = begin; group <= end && group <= last_group; ++group) fn(group);
  }
}

}  // namespace lacuna

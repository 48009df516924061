#pragma once
// A union of patterns as GPU kernels take it: the parts of parts.h by value, so that a launch carries them in its
// parameters and needs no memory of its own.

#include <cstdint>

#include "ops/sparse_attention/view.h"

namespace lacuna::gpu {

LACUNA_HOST_DEVICE inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
LACUNA_HOST_DEVICE inline int64_t greater(int64_t a, int64_t b) { return a < b ? b : a; }

/// A Part whose earlier parts are bits: bit e stands for band e of the same head.
struct Band {
  View view;
  int64_t prefix_before = 0;
  uint32_t contiguous_before = 0;
  uint32_t scattered_before = 0;

  friend bool operator==(const Band&, const Band&) = default;
};

inline constexpr int kMaxBands = 32;  // of a head: the bits above

/// Part::keys_of for band p of a head: the indices in the key list of `group` of the keys of query position i.
LACUNA_HOST_DEVICE inline Range keys_of(const Band* head, int p, int64_t group, int64_t i) {
  const Band& band = head[p];
  int64_t end = lesser(i + 1, band.view.key_end);
  for (int e = 0; e < p; ++e)
    if (band.contiguous_before >> e & 1) end = lesser(end, head[e].view.first_position(i));
  const Strip keys = band.view.keys(group);
  const int64_t begin = keys.rank(greater(band.prefix_before, band.view.first_position(i)));
  return {begin, greater(begin, keys.rank(end))};
}

/// Its transpose: of positions below n, the run that holds exactly those queries of the groups of key position j whose
/// keys_of has j. Both ends are monotone in j.
LACUNA_HOST_DEVICE inline Range queries_of(const Band* head, int p, int64_t j, int64_t n) {
  const Band& band = head[p];
  int64_t begin = j;
  for (int e = 0; e < p; ++e)
    if (band.contiguous_before >> e & 1) begin = greater(begin, head[e].view.end_of_reach(j));
  begin = lesser(begin, n);
  const int64_t end = greater(begin, lesser(n, band.view.end_of_reach(j)));
  if (j < band.prefix_before) return {begin, begin};
  if (j >= band.view.key_end) return {end, end};
  return {begin, end};
}

/// Part::skips for band p of a head: whether an earlier band that is neither contiguous nor a prefix has the pair (i,
/// j).
LACUNA_HOST_DEVICE inline bool skips(const Band* head, int p, int64_t i, int64_t j) {
  for (int e = 0; e < p; ++e)
    if ((head[p].scattered_before >> e & 1) && head[e].view.has(i, j)) return true;
  return false;
}

}  // namespace lacuna::gpu

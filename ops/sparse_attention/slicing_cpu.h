#pragma once
// How the CPU cuts a part into tasks.
//
// The queries of a group are cut into slices. In forward a slice is a task. In backward a task is a slice and a slab of
// keys: slab s holds the keys between the first positions of slices s and s + 1, so a slice meets only its own slab and
// earlier ones. Phase p runs all pairs (slice s, slab s - p) at once: no two tasks of a phase write the same row of dq,
// dk or dv, so the sums need neither atomics nor copies, and their order does not depend on the threads.

#include <algorithm>

#include "ops/sparse_attention/parts.h"
#include "ops/sparse_attention/tiles_cpu.h"

namespace lacuna::cpu {

/// One part of one head, cut into slices.
struct Slicing {
  const Part* part = nullptr;  // null when the head has fewer parts, or an earlier head takes it along
  int64_t n = 0;
  int64_t rows = kSlice;  // queries of a slice
  int64_t heads = 1;      // with the same part, taken by one task

  int64_t groups() const { return part->view.groups(n); }
  int64_t rows_of(int64_t group) const { return part->view.queries(group).rank(n); }
  int64_t slices() const { return (rows_of(0) + rows - 1) / rows; }  // of the longest group
  Range slice(int64_t group, int64_t s) const { return {s * rows, std::min((s + 1) * rows, rows_of(group))}; }

  /// Keys of `group` between the first positions of slices s and s + 1.
  Range slab(int64_t group, int64_t s) const {
    const Strip queries = part->view.queries(group), keys = part->view.keys(group);
    return {keys.rank(queries.position(s * rows)), keys.rank(std::min(n, queries.position((s + 1) * rows)))};
  }

  /// One more than the largest p for which a slice s meets keys in slab s - p.
  int64_t phases() const {
    int64_t phases = 0;
    for (int64_t group = 0; group < groups(); ++group) {
      const Strip queries = part->view.queries(group), key_list = part->view.keys(group);
      for (int64_t s = 0; s * rows < rows_of(group); ++s) {
        const Range all = slice(group, s);
        const int64_t first = part->keys_of(group, queries.position(all.begin)).begin;
        if (first >= part->keys_of(group, queries.position(all.end - 1)).end) continue;
        const int64_t slab = queries.rank(key_list.position(first)) / rows;
        phases = std::max(phases, s - std::min(s, slab) + 1);
      }
    }
    return phases;
  }
};

/// The part cut for forward.
inline Slicing forward_slicing(const Part* part, int64_t n) { return {part, n, kSlice}; }

/// Likewise for backward: as many queries as keep a slab at about kSlice keys, and whole segments.
inline Slicing backward_slicing(const Part* part, int64_t n) {
  Slicing slicing = forward_slicing(part, n);
  if (slicing.part == nullptr) return slicing;
  const View& view = slicing.part->view;
  const Strip& keys = view.keys_of_group_0;
  constexpr int64_t kMostRows = 8 * kSlice;                          // keep enough tasks
  const int64_t thinned = keys.period / keys.width / view.residues;  // queries per key
  slicing.rows = std::min(kMostRows, kSlice * std::max<int64_t>(1, std::min(thinned, kMostRows)));
  const int64_t rows_of_segment = std::max<int64_t>(1, view.segment / view.residues);
  if (rows_of_segment <= slicing.rows) slicing.rows -= slicing.rows % rows_of_segment;
  return slicing;
}

}  // namespace lacuna::cpu

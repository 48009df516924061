#pragma once
// Sliding windows: patterns whose queries meet the keys of a short run that ends at themselves, among the positions of
// their group: local and dilated windows, short blocks and segments.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "ops/sparse_attention/cuda/bands.h"
#include "ops/sparse_attention/parts.h"

namespace lacuna::gpu {

inline constexpr int kMaxReach = 128;  // rows that a query looks back over, its own not counted

/// The view of a head, if it is one band whose queries and keys are the same positions and reach at most kMaxReach rows
/// back.
inline std::optional<View> sliding_view_of(const std::vector<Part>& parts, int64_t n) {
  if (parts.size() != 1) return {};
  const View& view = parts.front().view;
  if (!view.queries_are_keys()) return {};
  const int64_t reach = (std::min({n, view.window, view.segment}) - 1) / view.residues;
  return reach <= kMaxReach ? std::optional(view) : std::nullopt;
}

/// What view.span(i) is in rows of the group: query position i meets the rows [begin, end).
LACUNA_HOST_DEVICE inline Range rows_met(const View& view, int64_t group, int64_t i) {
  const Strip rows = view.queries(group);
  const Range span = view.span(i);
  const int64_t begin = rows.rank(span.begin);
  return {begin, greater(begin, rows.rank(span.end))};
}

}  // namespace lacuna::gpu

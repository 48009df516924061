#pragma once
// Patterns that fall apart into columns: positions that are queries and keys of each other alone. A column is what a
// group has in a segment, as every `stride`-th position of the strided pattern, a block of the fixed one, a dilated
// segment. Where columns are short a block of threads has all queries and all keys of one, or of several on top of each
// other, and nothing is streamed.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "ops/sparse_attention/cuda/bands.h"
#include "ops/sparse_attention/parts.h"

namespace lacuna::gpu {

inline constexpr int kMaxColumnRows = 128;
inline constexpr int kStackedRows = 64;  // columns are stacked up to that: larger tiles leave room for fewer blocks

/// A row of a tile of columns.
struct ColumnRow {
  int position = -1;       // of the query and the key; -1: there is none
  int begin = 0, end = 0;  // rows of the tile that it meets as keys; neither falls from row to row
};

/// The columns of a view, and how tiles hold them: rows_of_column rows for each, whether it has as many or not, from
/// row 0 on.
struct Columns {
  View view;
  int64_t n = 0;
  int rows_of_column = 0;  // of the longest
  int per_tile = 0;

  LACUNA_HOST_DEVICE int64_t count() const {
    return view.groups(n) * (view.segment < n ? (n + view.segment - 1) / view.segment : 1);
  }
  LACUNA_HOST_DEVICE int64_t tiles() const { return (count() + per_tile - 1) / per_tile; }
  LACUNA_HOST_DEVICE int tile_rows() const { return per_tile * rows_of_column; }

  /// Neighbouring columns are those of neighbouring groups.
  LACUNA_HOST_DEVICE ColumnRow row(int64_t tile, int r) const {
    const int place = static_cast<int>(lesser(r / rows_of_column, per_tile - 1)), base = place * rows_of_column;
    const int64_t column = tile * per_tile + place;
    if (column >= count()) return {-1, base, base};
    const Strip queries = view.queries(column % view.groups(n));
    const int64_t segment = column / view.groups(n);
    const int64_t first = segment == 0 ? 0 : queries.rank(segment * view.segment);
    const int64_t end = queries.rank(view.segment < n ? lesser(n, (segment + 1) * view.segment) : n);
    const int64_t t = first + (r - base);
    if (t >= end) {
      const int past = base + static_cast<int>(end - first);
      return {-1, past, past};
    }
    const int64_t i = queries.position(t);
    const Range met = view.span(i);
    const int64_t met_begin = queries.rank(met.begin) - first, met_end = queries.rank(met.end) - first;
    return {static_cast<int>(i), base + static_cast<int>(lesser(met_begin, greater(0, met_end))),
            base + static_cast<int>(greater(0, met_end))};
  }

  friend bool operator==(const Columns&, const Columns&) = default;
};

/// The columns of a head, if it is one band that falls apart into columns of at most `max_rows` rows.
inline std::optional<Columns> columns_of(const std::vector<Part>& parts, int64_t n, int64_t max_rows) {
  if (parts.size() != 1) return {};
  const View& view = parts.front().view;
  if (!view.queries_are_keys()) return {};
  if (view.segment < view.residues) return {};  // most columns would be empty
  const int64_t rows = (std::min(n, view.segment) + view.residues - 1) / view.residues;
  if (rows == 0 || rows > max_rows) return {};
  Columns columns{view, n, static_cast<int>(rows), 1};
  columns.per_tile = static_cast<int>(std::clamp<int64_t>(kStackedRows / rows, 1, columns.count()));
  return columns;
}

}  // namespace lacuna::gpu

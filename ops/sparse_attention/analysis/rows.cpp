// Rows and tiles of a union of patterns, counted.

#include <algorithm>

#include "ops/sparse_attention/analysis/check.h"

namespace lacuna {

RowStatistics row_statistics(const std::vector<Part>& parts, int64_t n) {
  constexpr int64_t kMostPairs = int64_t{1} << 30;  // looked at one by one, where parts overlap: seconds
  RowStatistics result;
  int64_t overlapping = 0;
  const auto runs_of = [&](int64_t i, const auto& visit) {
    for (const Part& part : parts) {
      const int64_t group = i % part.view.residues;
      visit(part, group, part.keys_of(group, i));
    }
  };
  for (int64_t i = 0; i < n; ++i) {
    int64_t count = 0;
    runs_of(i, [&](const Part& part, int64_t, Range keys) {
      count += keys.end - keys.begin;
      if (!part.scattered_before.empty()) overlapping += keys.end - keys.begin;
    });
    result.pairs += count;
    result.most = std::max(result.most, count);
    // A key that is skipped is one of an earlier part: a row is empty when all its runs are.
    if (count > 0) continue;
    if (result.empty.empty() || result.empty.back().end != i) result.empty.push_back({i, i});
    result.empty.back().end = i + 1;
  }
  if (overlapping == 0) return result;

  const int64_t every = (overlapping + kMostPairs - 1) / kMostPairs;  // rows looked at: one in so many
  result.exact = every == 1;
  int64_t pairs = 0, most = 0, rows = 0;
#pragma omp parallel for schedule(dynamic, 64) reduction(+ : pairs, rows) reduction(max : most)
  for (int64_t i = 0; i < n; i += every) {
    int64_t count = 0;
    runs_of(i, [&](const Part& part, int64_t group, Range keys) {
      count += keys.end - keys.begin;
      if (part.scattered_before.empty()) return;
      for (int64_t t = keys.begin; t < keys.end; ++t) count -= part.skips(i, part.view.keys(group).position(t));
    });
    pairs += count;
    most = std::max(most, count);
    ++rows;
  }
  result.pairs =
      static_cast<int64_t>(static_cast<double>(pairs) / static_cast<double>(rows) * static_cast<double>(n) + 0.5);
  if (result.exact) result.pairs = pairs;
  result.most = most;
  return result;
}

int64_t count_tiles(const std::vector<Part>& parts, int64_t n, TileSize size) {
  int64_t tiles = 0;
  for (const Part& part : parts)
    for (int64_t group = 0; group < part.view.groups(n); ++group) {
      const Strip queries = part.view.queries(group);
      const int64_t rows = queries.rank(n);
      for (int64_t r = 0; r < rows; r += size.queries) {
        const int64_t last = std::min(r + size.queries, rows) - 1;
        const int64_t begin = part.keys_of(group, queries.position(r)).begin;
        const int64_t end = part.keys_of(group, queries.position(last)).end;
        if (begin < end) tiles += (end + size.keys - 1) / size.keys - begin / size.keys;
      }
    }
  return tiles;
}

}  // namespace lacuna

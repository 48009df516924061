#include "ops/sparse_attention/cuda/launches.h"

#include <algorithm>

#include "core/error.h"
#include "ops/sparse_attention/kernels.h"

namespace lacuna::gpu {
namespace {

std::vector<Band> bands_of(const std::vector<Part>& parts) {
  check(parts.size() <= kMaxBands, "sparse_attention: a head may merge at most ", kMaxBands, " views on a GPU, got ",
        parts.size());
  std::vector<Band> bands;
  for (const Part& part : parts) {
    const auto bits = [&](const std::vector<View>& views) {
      uint32_t bits = 0;
      for (size_t e = 0; e < bands.size(); ++e)
        if (std::find(views.begin(), views.end(), bands[e].view) != views.end()) bits |= 1u << e;
      return bits;
    };
    bands.push_back({part.view, part.prefix_before, bits(part.contiguous_before), bits(part.scattered_before)});
  }
  return bands;
}

/// Where each cut of the bands begins, and the end.
std::vector<size_t> cuts_of(const std::vector<Band>& bands, Cut cut) {
  std::vector<size_t> cuts{0};
  for (size_t p = 1; p < bands.size(); ++p)
    if (cut == Cut::keys || (cut == Cut::queries && bands[p].view.residues != bands[p - 1].view.residues))
      cuts.push_back(p);
  cuts.push_back(bands.size());
  return cuts;
}

/// Appends a head to the last table, or to a new one when it is full.
void add_head(std::vector<BandTable>& tables, int64_t head, const std::vector<Band>& bands, size_t begin, size_t end,
              int64_t tiles) {
  const auto count = static_cast<int>(bands.size());
  const auto place_in = [&](const BandTable& table) {
    for (const HeadBands* h = table.heads; h != table.heads + table.n_heads; ++h)
      if (h->first + count <= table.n_bands && std::equal(bands.begin(), bands.end(), table.bands + h->first))
        return static_cast<int>(h->first);
    return table.n_bands + count <= kMaxBands ? table.n_bands : -1;
  };
  if (tables.empty() || tables.back().n_heads == kMaxHeads || place_in(tables.back()) < 0) tables.emplace_back();
  BandTable& table = tables.back();
  const int first = place_in(table);
  std::copy(bands.begin(), bands.end(), table.bands + first);
  table.n_bands = std::max(table.n_bands, first + count);
  table.heads[table.n_heads++] = {static_cast<int16_t>(head), static_cast<int16_t>(first), static_cast<int16_t>(begin),
                                  static_cast<int16_t>(end)};
  table.tiles = std::max(table.tiles, tiles);
}

bool one_group_per_key(const View& view) {
  const Strip& keys = view.keys_of_group_0;
  return view.residues == 1 || (keys.width == 1 && view.residues <= keys.period);
}

void check_sizes(const AttentionProblem& problem) {
  constexpr int64_t kMaxPositions = int64_t{1} << 30, kMaxHeadIndex = int64_t{1} << 15;
  check(problem.n <= kMaxPositions, "sparse_attention: n_ctx must be at most ", kMaxPositions, " on a GPU, got ",
        problem.n);
  check(problem.n_heads <= kMaxHeadIndex, "sparse_attention: n_heads must be at most ", kMaxHeadIndex,
        " on a GPU, got ", problem.n_heads);
}

/// Moves the heads for which kind_of(parts) has a value from the call to tables of heads whose `kind` has that value.
template <class Table, class Kind, class KindOf>
void take_heads(AttentionProblem& problem, std::vector<Table>& tables, Kind Table::* kind, const KindOf& kind_of) {
  for (int64_t h = 0; h < problem.n_heads; ++h) {
    std::vector<Part>& parts = problem.heads[static_cast<size_t>(h)];
    const std::optional<Kind> found = kind_of(parts);
    if (!found) continue;
    auto table = std::find_if(tables.begin(), tables.end(),
                              [&](const Table& t) { return t.*kind == *found && t.n_heads < kMaxHeads; });
    if (table == tables.end()) {
      table = tables.insert(table, Table{});
      (*table).*kind = *found;
    }
    table->heads[table->n_heads++] = static_cast<int16_t>(h);
    parts.clear();
  }
}

}  // namespace

std::vector<std::vector<BandTable>> passes_of(const AttentionProblem& problem, Cut cut, int64_t rows_per_tile) {
  check_sizes(problem);
  std::vector<std::vector<BandTable>> passes;
  for (int64_t h = 0; h < problem.n_heads; ++h) {
    const std::vector<Band> bands = bands_of(problem.heads[static_cast<size_t>(h)]);
    if (bands.empty()) continue;
    const std::vector<size_t> cuts = cuts_of(bands, cut);
    for (size_t m = 0; m + 1 < cuts.size(); ++m) {
      if (passes.size() == m) passes.emplace_back();
      const View& view = bands[cuts[m]].view;
      const int64_t rows = cut == Cut::keys ? view.keys(0).rank(problem.n) : view.queries(0).rank(problem.n);
      if (rows == 0) continue;  // n ends before the first key
      add_head(passes[m], h, bands, cuts[m], cuts[m + 1],
               view.groups(problem.n) * ((rows + rows_per_tile - 1) / rows_per_tile));
    }
  }
  return passes;
}

std::vector<ColumnTable> take_columns(AttentionProblem& problem, int64_t max_rows) {
  check_sizes(problem);
  std::vector<ColumnTable> tables;
  take_heads(problem, tables, &ColumnTable::columns,
             [&](const std::vector<Part>& parts) { return columns_of(parts, problem.n, max_rows); });
  return tables;
}

std::vector<SlidingTable> take_sliding(AttentionProblem& problem) {
  check_sizes(problem);
  std::vector<SlidingTable> tables;
  take_heads(problem, tables, &SlidingTable::view,
             [&](const std::vector<Part>& parts) { return sliding_view_of(parts, problem.n); });
  return tables;
}

bool keys_have_one_group(const AttentionProblem& problem) {
  return std::all_of(problem.heads.begin(), problem.heads.end(), [](const std::vector<Part>& parts) {
    return std::all_of(parts.begin(), parts.end(), [](const Part& part) { return one_group_per_key(part.view); });
  });
}

bool first_bands_have_all_keys(const AttentionProblem& problem) {
  return std::all_of(problem.heads.begin(), problem.heads.end(), [](const std::vector<Part>& parts) {
    if (parts.empty()) return true;
    const View& view = parts.front().view;
    const Strip& keys = view.keys_of_group_0;
    return keys.first == 0 && keys.period == view.residues * keys.width && one_group_per_key(view);
  });
}

}  // namespace lacuna::gpu

// One source at a time: the positions that reach it, as runs.

#include <algorithm>

#include "ops/sparse_attention/analysis/follow.h"

namespace lacuna {
namespace {

/// Positions as runs: ascending, disjoint, and not touching.
using Runs = std::vector<Range>;

void normalize(Runs& runs) {
  std::sort(runs.begin(), runs.end(), [](Range a, Range b) { return a.begin < b.begin; });
  size_t last = 0;
  for (size_t r = 1; r < runs.size(); ++r) {
    if (runs[r].begin <= runs[last].end)
      runs[last].end = std::max(runs[last].end, runs[r].end);
    else
      runs[++last] = runs[r];
  }
  if (!runs.empty()) runs.resize(last + 1);
}

/// Appends the queries that meet a key of `from`, for a view of one group: a key v is met by every query from v to the
/// end of its window, segment or sequence, and that end never moves back from one key to the next.
void append_queries_of_one_group(const View& view, int64_t n, const Runs& from, Runs& out) {
  const Strip keys = view.keys(0);
  const auto end_for = [&](int64_t v) {
    const int64_t window_end = view.window >= n ? n : v + view.window;
    return std::min({n, window_end, view.segment >= n ? n : (v / view.segment + 1) * view.segment});
  };
  for (const Range& run : from) {
    const int64_t run_end = std::min(run.end, view.key_end);
    for (int64_t t = keys.rank(run.begin); keys.position(t) < run_end;) {
      const int64_t begin = keys.position(t);
      const int64_t piece = keys.width == keys.period ? run_end : begin + keys.width - t % keys.width;
      const int64_t end = std::min(piece, run_end);
      out.push_back({begin, end_for(end - 1)});
      t = keys.rank(view.window >= n ? out.back().end : end);  // without a window the keys between have the same end
    }
  }
}

/// The same for a view whose groups are the residue classes, without a window: a residue once met stays met until the
/// segment ends. Goes block by block of `residues` positions: what was met in one block, moved on by one, is met in the
/// next.
void append_queries_of_columns(const View& view, int64_t n, const Runs& from, Runs& out) {
  const int64_t step = view.residues, key_end = std::min(n, view.key_end);
  Runs block, previous;
  size_t next = 0;  // the first run that reaches beyond x
  for (int64_t x = 0; next < from.size() && from[next].begin < key_end;) {
    x = std::max(x, from[next].begin);
    const int64_t segment_end = view.segment >= n ? n : std::min(n, (x / view.segment + 1) * view.segment);
    for (previous.clear(); x < segment_end; std::swap(block, previous)) {
      const int64_t stop = std::min(x + step, segment_end);
      block.clear();
      for (const Range& run : previous)
        if (run.begin + step < stop) block.push_back({run.begin + step, std::min(run.end + step, stop)});
      for (; next < from.size() && from[next].begin < std::min(stop, key_end); ++next) {
        block.push_back({std::max(x, from[next].begin), std::min({from[next].end, stop, key_end})});
        if (block.back().empty()) block.pop_back();
        if (from[next].end > stop) break;
      }
      normalize(block);
      const bool full = block.size() == 1 && block[0].end - block[0].begin == step;
      if (full) block[0].end = segment_end;
      out.insert(out.end(), block.begin(), block.end());
      x = full ? segment_end : stop;
    }
    while (next < from.size() && from[next].end <= x) ++next;
  }
}

/// The same for any view, query by query.
void append_queries_of_any(const View& view, int64_t n, const Runs& from, Runs& out) {
  std::vector<uint8_t> is_from(static_cast<size_t>(n), 0), meets(static_cast<size_t>(n), 0);
  for (const Range& run : from) std::fill(is_from.begin() + run.begin, is_from.begin() + run.end, uint8_t{1});
  for (int64_t group = 0; group < view.groups(n); ++group) {
    const Strip keys = view.keys(group);
    int64_t last = -1;  // the last key of `from` at or before i
    int64_t t = keys.rank(0);
    for (int64_t i = group; i < n; i += view.residues) {
      for (; keys.position(t) < std::min(i + 1, view.key_end); ++t)
        if (is_from[static_cast<size_t>(keys.position(t))]) last = keys.position(t);
      meets[static_cast<size_t>(i)] = last >= view.first_position(i);
    }
  }
  for (int64_t i = 0; i < n; ++i)
    if (meets[static_cast<size_t>(i)]) out.push_back({i, i + 1});
}

/// Appends every query that meets a key of `from`. Returns the work it was.
int64_t append_queries(const View& view, int64_t n, const Runs& from, Runs& out) {
  const Strip& keys = view.keys_of_group_0;
  const size_t before = out.size();
  if (view.residues == 1) {
    append_queries_of_one_group(view, n, from, out);
  } else if (keys == Strip{0, view.residues, 1} && view.window >= n) {
    append_queries_of_columns(view, n, from, out);
    return static_cast<int64_t>(out.size() - before) + n / std::min({n, view.residues, view.segment});
  } else {
    append_queries_of_any(view, n, from, out);
    return n;
  }
  return static_cast<int64_t>(out.size() - before);
}

bool same(const Runs& a, const Runs& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](Range x, Range y) { return x.begin == y.begin && x.end == y.end; });
}

}  // namespace

Followed follow_by_runs(int64_t source, const ViewCycle& cycle, int64_t n, int64_t limit) {
  Followed result{0, n, n, 0, 0};
  Runs reached{{source, source + 1}}, next;
  const auto first_gap = [&] { return reached.front().end; };  // n when there is none
  const auto layers = static_cast<int64_t>(cycle.size());
  for (int64_t layer = 0, unchanged = 0; first_gap() < n && unchanged < layers; ++layer) {
    next = reached;
    for (const View& view : cycle[static_cast<size_t>(layer % layers)])
      result.work += append_queries(view, n, reached, next) + 1;
    normalize(next);
    unchanged = same(next, reached) ? unchanged + 1 : 0;
    std::swap(reached, next);
    ++result.rounds;
    if (first_gap() == n) result.layers = layer + 1;
    if (layer + 1 <= limit) result.missing = first_gap();
  }
  result.never = first_gap();
  return result;
}

}  // namespace lacuna

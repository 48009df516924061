#include "ops/sparse_attention/analysis/reach.h"

#include <algorithm>
#include <numeric>

#include "core/error.h"

namespace lacuna {
namespace {

// --- By pairs ---

/// Rows of n bits.
class BitMatrix {
 public:
  explicit BitMatrix(int64_t n) : n_(n), words_((n + 63) / 64), bits_(static_cast<size_t>(n * words_), 0) {}

  void set(int64_t i, int64_t j) { row(i)[j / 64] |= uint64_t{1} << (j % 64); }
  bool get(int64_t i, int64_t j) const { return row(i)[j / 64] >> (j % 64) & 1; }

  /// Row i |= row `from` of `other`; whether that changed anything.
  bool unite(int64_t i, const BitMatrix& other, int64_t from) {
    uint64_t changed = 0;
    for (int64_t w = 0; w < words_; ++w) {
      const uint64_t added = other.row(from)[w] & ~row(i)[w];
      row(i)[w] |= added;
      changed |= added;
    }
    return changed != 0;
  }

  /// The first pair j <= i that is not set.
  std::optional<PositionPair> first_missing() const {
    for (int64_t i = 0; i < n_; ++i)
      for (int64_t j = 0; j <= i; ++j)
        if (!get(i, j)) return PositionPair{i, j};
    return {};
  }

 private:
  uint64_t* row(int64_t i) { return bits_.data() + i * words_; }
  const uint64_t* row(int64_t i) const { return bits_.data() + i * words_; }

  int64_t n_, words_;
  std::vector<uint64_t> bits_;
};

BitMatrix pairs_of(const LayerHeads& layer, int64_t n) {
  BitMatrix pairs(n);
  for (const HeadGroup& group : layer)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j <= i; ++j)
        if (attends(group.patterns, i, j)) pairs.set(i, j);
  return pairs;
}

// --- By views ---

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

/// The views of all heads of a layer, each once.
std::vector<View> views_of(const LayerHeads& layer) {
  std::vector<View> views;
  for (const HeadGroup& group : layer)
    for (const Pattern& pattern : group.patterns)
      for (const View& view : pattern.views())
        if (std::find(views.begin(), views.end(), view) == views.end()) views.push_back(view);
  return views;
}

/// What can be said of one source: positions are n where there is none.
struct Followed {
  int64_t layers = 0;              // until every later position reaches it; 0: never
  int64_t missing = 0, never = 0;  // the first position that does not, after `limit` layers and at the end
  int64_t work = 0;
};

Followed follow(int64_t source, const std::vector<std::vector<View>>& cycle, int64_t n, int64_t limit) {
  Followed result{0, n, n, 0};
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
    if (first_gap() == n) result.layers = layer + 1;
    if (layer + 1 <= limit) result.missing = first_gap();
  }
  result.never = first_gap();
  return result;
}

void keep_first(std::optional<PositionPair>& best, int64_t i, int64_t j, int64_t n) {
  if (i < n && (!best || PositionPair{i, j} < *best)) best = PositionPair{i, j};
}

constexpr int64_t kMostWork = int64_t{1} << 32;  // steps over runs: about a minute

}  // namespace

std::vector<LayerHeads> head_groups(const AttentionPattern& attention, int64_t n_heads) {
  std::vector<LayerHeads> cycle;
  for (const LayerPattern& layer : attention.layers) {
    LayerHeads& groups = cycle.emplace_back();
    for (int64_t h = 0; h < n_heads; ++h) {
      const PatternUnion patterns = layer.for_head(h);
      auto group =
          std::find_if(groups.begin(), groups.end(), [&](const HeadGroup& g) { return g.patterns == patterns; });
      if (group == groups.end()) group = groups.insert(group, {patterns, {}});
      group->heads.push_back(h);
    }
  }
  return cycle;
}

Reach reach_by_pairs(const std::vector<LayerHeads>& cycle, int64_t n, int64_t limit) {
  std::vector<BitMatrix> pairs_of_layer;
  for (const LayerHeads& layer : cycle) pairs_of_layer.push_back(pairs_of(layer, n));
  BitMatrix reached(n);
  for (int64_t i = 0; i < n; ++i) reached.set(i, i);

  Reach result;
  result.followed = result.sources = n;
  const auto layers = static_cast<int64_t>(cycle.size());
  result.missing = reached.first_missing();
  if (!result.missing) result.layers = 0;
  for (int64_t layer = 0, unchanged = 0; !result.layers && unchanged < layers; ++layer) {
    const BitMatrix& pairs = pairs_of_layer[static_cast<size_t>(layer % layers)];
    bool changed = false;
    for (int64_t i = n - 1; i >= 0; --i)  // from the end: the rows read are still those of the layer before
      for (int64_t via = 0; via < i; ++via)
        if (pairs.get(i, via)) changed = reached.unite(i, reached, via) || changed;
    unchanged = changed ? 0 : unchanged + 1;
    const std::optional<PositionPair> missing = reached.first_missing();
    if (!missing) result.layers = layer + 1;
    if (layer < limit) result.missing = missing;
  }
  if (!result.layers) result.never = reached.first_missing();
  return result;
}

Reach reach_by_views(const std::vector<LayerHeads>& cycle, int64_t n, int64_t limit) {
  std::vector<std::vector<View>> views_of_layer;
  std::vector<View> all;
  for (const LayerHeads& layer : cycle) {
    views_of_layer.push_back(views_of(layer));
    all.insert(all.end(), views_of_layer.back().begin(), views_of_layer.back().end());
  }
  const Periodicity repeats = periodicity(all, n);

  Reach result;
  result.layers = 0;
  result.sources = std::min(n, repeats.irregular + repeats.period);
  // Sources far apart follow each other, so that a part of them is spread over all: a step that shares no factor with
  // their number, near the golden section.
  int64_t step = std::max<int64_t>(1, static_cast<int64_t>(0.618034 * static_cast<double>(result.sources)));
  while (std::gcd(step, result.sources) != 1) ++step;
  constexpr int64_t kChunk = 64;
  for (int64_t work = 0; result.followed < result.sources && work < kMostWork;) {
    const int64_t count = std::min(kChunk, result.sources - result.followed);
    std::vector<Followed> chunk(static_cast<size_t>(count));
    const auto source_of = [&](int64_t c) { return (result.followed + c) * step % result.sources; };
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t c = 0; c < count; ++c) chunk[static_cast<size_t>(c)] = follow(source_of(c), views_of_layer, n, limit);
    for (int64_t c = 0; c < count; ++c) {
      const Followed& one = chunk[static_cast<size_t>(c)];
      work += one.work;
      keep_first(result.missing, one.missing, source_of(c), n);
      keep_first(result.never, one.never, source_of(c), n);
      if (result.layers) *result.layers = std::max(*result.layers, one.layers);
      if (one.never < n) result.layers.reset();
    }
    result.followed += count;
  }
  return result;
}

Periodicity periodicity(const std::vector<View>& views, int64_t n) {
  Periodicity result;
  const auto repeat_after = [&](int64_t step) {
    result.period = step >= n ? n : std::min(n, std::lcm(result.period, step));  // both below n: no overflow
  };
  for (const View& view : views) {
    const Strip& keys = view.keys_of_group_0;
    repeat_after(view.residues);
    if (keys.width < keys.period) repeat_after(keys.period);
    if (view.segment < n) repeat_after(view.segment);
    if (view.key_end != kUnbounded) result.irregular = std::max(result.irregular, view.key_end);
    const int64_t last_first = keys.first + view.residues - 1;  // where the keys of the last group begin
    if (last_first > keys.period - keys.width) result.irregular = std::max(result.irregular, last_first);
  }
  result.irregular = std::min(result.irregular, n);
  return result;
}

}  // namespace lacuna

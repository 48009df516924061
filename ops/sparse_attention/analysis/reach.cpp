#include "ops/sparse_attention/analysis/reach.h"

#include <omp.h>

#include <algorithm>
#include <numeric>

#include "ops/sparse_attention/analysis/follow.h"

namespace lacuna {
namespace {

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

/// The views of all heads of a layer, each once.
std::vector<View> views_of(const LayerHeads& layer) {
  std::vector<View> views;
  for (const HeadGroup& group : layer)
    for (const Pattern& pattern : group.patterns)
      for (const View& view : pattern.views())
        if (std::find(views.begin(), views.end(), view) == views.end()) views.push_back(view);
  return views;
}

void keep_first(std::optional<PositionPair>& best, int64_t i, int64_t j, int64_t n) {
  if (i < n && (!best || PositionPair{i, j} < *best)) best = PositionPair{i, j};
}

constexpr int64_t kMostWork = int64_t{1} << 32;  // steps over runs or positions: about a minute

/// What takes fewer steps: runs, unless a source has so many that its share of following a block by bits is less.
Follow cheapest(const ViewCycle& cycle, int64_t n, int64_t sources) {
  constexpr int64_t kMostMasks = int64_t{1} << 21;  // 192 bytes each, for up to 8 threads
  if (sources < kFollowedTogether || n > kMostMasks) return Follow::runs;
  const Followed one = follow_by_runs(sources / 2, cycle, n, 1);
  int64_t most_views = 0;
  for (const std::vector<View>& views : cycle) most_views = std::max(most_views, static_cast<int64_t>(views.size()));
  return one.work > n * most_views * one.rounds / kFollowedTogether ? Follow::together : Follow::runs;
}

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

Reach reach_by_views(const std::vector<LayerHeads>& cycle, int64_t n, int64_t limit, Follow follow) {
  ViewCycle views_of_layer;
  std::vector<View> all;
  for (const LayerHeads& layer : cycle) {
    views_of_layer.push_back(views_of(layer));
    all.insert(all.end(), views_of_layer.back().begin(), views_of_layer.back().end());
  }
  const Periodicity repeats = periodicity(all, n);

  Reach result;
  result.layers = 0;
  result.sources = std::min(n, repeats.irregular + repeats.period);
  if (follow == Follow::cheapest) follow = cheapest(views_of_layer, n, result.sources);
  const int64_t block = follow == Follow::runs ? 1 : kFollowedTogether;
  const int64_t blocks = (result.sources + block - 1) / block;
  // Blocks far apart follow each other, so that a part of them is spread over all: a step that shares no factor with
  // their number, near the golden section.
  int64_t step = std::max<int64_t>(1, static_cast<int64_t>(0.618034 * static_cast<double>(blocks)));
  while (std::gcd(step, blocks) != 1) ++step;
  int64_t work = 0, done = 0;
#pragma omp parallel num_threads(std::min(8, omp_get_max_threads()))
  {
    std::optional<FollowTogether> together;
    if (follow == Follow::together) together.emplace(views_of_layer, n, limit);
    for (;;) {
      Range sources;
#pragma omp critical(lacuna_reach)
      if (done < blocks && work < kMostWork) {
        sources.begin = done++ * step % blocks * block;
        sources.end = std::min(sources.begin + block, result.sources);
      }
      if (sources.empty()) break;
      const std::vector<Followed> followed =
          together ? together->follow(sources) : std::vector{follow_by_runs(sources.begin, views_of_layer, n, limit)};
#pragma omp critical(lacuna_reach)
      for (int64_t source = sources.begin; source < sources.end; ++source) {
        const Followed& one = followed[static_cast<size_t>(source - sources.begin)];
        work += one.work;
        ++result.followed;
        keep_first(result.missing, one.missing, source, n);
        keep_first(result.never, one.never, source, n);
        if (result.layers) *result.layers = std::max(*result.layers, one.layers);
        if (one.never < n) result.layers.reset();
      }
    }
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

#pragma once
// How many layers it takes until every position can use all positions before it (Sec. 4.2).

#include <optional>
#include <vector>

#include "ops/sparse_attention/pattern.h"

namespace lacuna {

/// Query i and key j.
struct PositionPair {
  int64_t i = 0, j = 0;
  friend auto operator<=>(const PositionPair&, const PositionPair&) = default;
};

/// Heads of a layer that attend to the same keys.
struct HeadGroup {
  PatternUnion patterns;
  std::vector<int64_t> heads;
};

/// The different heads of a layer, in order of first appearance.
using LayerHeads = std::vector<HeadGroup>;

/// Those of each layer of the cycle.
std::vector<LayerHeads> head_groups(const AttentionPattern& attention, int64_t n_heads);

/// Position i reaches j <= i through some layers when i == j, when i reaches j through all but the last of them (the
/// residual path), or when in the last layer some head of i attends to a position that reaches j through the others.
struct Reach {
  std::optional<int64_t> layers;        // the least number of layers through which all pairs reach; none: not found
  std::optional<PositionPair> missing;  // first pair (least i, then least j) that `limit` layers leave out
  std::optional<PositionPair> never;    // first pair that any number of layers leaves out
  int64_t followed = 0, sources = 0;    // positions whose way was followed, of those that stand for all
};

/// From the predicates, as products of n x n bit matrices. Memory: n^2 bits for every layer of the cycle.
Reach reach_by_pairs(const std::vector<LayerHeads>& cycle, int64_t n, int64_t limit);

/// How positions that stand for others are followed (follow.h): as runs, one after the other; a block of them together,
/// a bit each; or as takes fewer steps.
enum class Follow : uint8_t { runs, together, cheapest };

/// From the views.
///
/// Why few sources stand for all: a view has the pair (i + P, j + P) exactly when it has (i, j), where P is a common
/// multiple of its residues, the period of its keys and its segment, and j lies behind what is irregular: a prefix, or
/// the first keys of a strip that begins late. What reaches back to j goes through positions from j on alone, so the
/// positions that reach j + P are those that reach j, moved by P, as far as n allows. So the positions up to P behind
/// the irregular ones show all there is, and the first of each class has the longest way to go.
///
/// When following them all would take more than about a minute, evenly spread ones are followed until it is spent:
/// then followed < sources, `layers` is a lower bound, and a missing pair is missing but may not be the first.
Reach reach_by_views(const std::vector<LayerHeads>& cycle, int64_t n, int64_t limit, Follow follow = Follow::cheapest);

/// The P above for some views, at most n, and the number of irregular positions before it holds, at most n.
struct Periodicity {
  int64_t period = 1, irregular = 0;
};
Periodicity periodicity(const std::vector<View>& views, int64_t n);

}  // namespace lacuna

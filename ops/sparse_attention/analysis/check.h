#pragma once
// Proofs about patterns and what kernels make of them. docs/patterns.md says in words what each of them shows.

#include <optional>
#include <string>
#include <vector>

#include "ops/sparse_attention/analysis/reach.h"
#include "ops/sparse_attention/parts.h"

namespace lacuna {

/// Up to this many positions a proof looks at every pair, unless told otherwise by `all_pairs_limit`.
inline constexpr int64_t kAllPairsLimit = 2048;

/// What a check found.
struct Finding {
  std::optional<std::string> violation;  // the first one, in words
  std::string evidence;                  // what was looked at, in words
  bool complete = true;                  // whether that was everything
  bool holds() const { return !violation; }
};

/// Whether every view is one that kernels can follow: positive numbers, a strip no wider than its period, and keys that
/// no two of its groups share (two tasks of backward would add to the gradient of such a key at once).
Finding check_views(const std::vector<View>& views);

/// Whether the predicate of a pattern attends to no later position, and has each pair as often as its views. The views
/// must have passed check_views.
///
/// Up to the limit: all pairs. Beyond, the predicate is known only by asking it, so n^2 answers are
/// replaced by those that settle the matter if the predicate repeats as the views do (reach.h: period P, irregular
/// positions first): it depends on i mod P and i - j for keys behind the irregular ones. Asked then are all pairs of
/// the first positions up to the limit, of P queries at the end with every key (each place in the period at each
/// distance), and of every query with the irregular keys; and, so that a predicate that does not repeat is noticed, for
/// every query the keys around both ends of each of its runs, and one anywhere. `complete` says whether P was small
/// enough for this.
Finding check_predicate(const Pattern& pattern, int64_t n, int64_t all_pairs_limit = kAllPairsLimit);

/// Whether the parts have each pair of the union as often as it counts; parts_of(patterns) is what kernels run.
///
/// Up to the limit: all pairs, against the predicates. Beyond, against the views, which have passed
/// check_predicate: the ends of the runs of all views and parts cut each row into at most four pieces for every one of
/// them, inside which each either applies or does not. There all of them are periodic, and depend on the query only
/// through i mod the residues, so a piece is compared over one period, once for each of these cases.
Finding check_parts(const PatternUnion& patterns, const std::vector<Part>& parts, int64_t n,
                    int64_t all_pairs_limit = kAllPairsLimit);

/// Whether backward, which goes from slabs of keys to slices of queries (slicing_cpu.h), meets each pair of the parts
/// exactly once: the ends of the runs never move back, so that the queries of a key are one run too; the slabs follow
/// each other without gap or overlap; and the phases suffice to bring each query together with all its keys. Up to
/// the limit the pairs met are also counted, and compared with the transposed predicates.
Finding check_backward(const PatternUnion& patterns, const std::vector<Part>& parts, int64_t n,
                       int64_t all_pairs_limit = kAllPairsLimit);

/// The keys of the rows of a union.
struct RowStatistics {
  int64_t pairs = 0;         // (query, key), with multiplicities
  int64_t most = 0;          // keys of one query
  std::vector<Range> empty;  // queries without keys, as runs
  bool exact = true;         // false: parts that overlap were counted in a part of the rows only
};
RowStatistics row_statistics(const std::vector<Part>& parts, int64_t n);

/// A tile: so many queries of a group by so many entries of its key list, which begins at a multiple of `keys`.
struct TileSize {
  int64_t queries = 1, keys = 1;
};

/// Tiles with a pair in them. All their queries * keys pairs are computed.
int64_t count_tiles(const std::vector<Part>& parts, int64_t n, TileSize size);

}  // namespace lacuna

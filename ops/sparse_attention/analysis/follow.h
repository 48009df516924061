#pragma once
// Which positions a source reaches, layer after layer: one source by runs of positions, or many at once by a bit each.

#include <array>
#include <cstdint>
#include <vector>

#include "ops/sparse_attention/view.h"

namespace lacuna {

/// The views of each layer of the cycle.
using ViewCycle = std::vector<std::vector<View>>;

/// What can be said of one source: positions are n where there is none.
struct Followed {
  int64_t layers = 0;              // until every later position reaches it; 0: never
  int64_t missing = 0, never = 0;  // the first position that does not, after `limit` layers and at the end
  int64_t rounds = 0;              // layers followed
  int64_t work = 0;
};

/// Work grows with the runs, of which there may be few or n.
Followed follow_by_runs(int64_t source, const ViewCycle& cycle, int64_t n, int64_t limit);

inline constexpr int64_t kFollowedTogether = 512;

/// The same for blocks of at most kFollowedTogether sources, one block after the other. Work and memory grow with n,
/// whatever the pattern.
class FollowTogether {
 public:
  /// A bit for each source of a block.
  struct Mask {
    std::array<uint64_t, kFollowedTogether / 64> words{};
  };

  FollowTogether(const ViewCycle& cycle, int64_t n, int64_t limit);

  /// The result of each source; the work of all is in the first.
  std::vector<Followed> follow(Range sources);

 private:
  const ViewCycle& cycle_;
  int64_t n_, limit_;
  std::vector<Mask> reached_, next_, from_here_;
};

}  // namespace lacuna

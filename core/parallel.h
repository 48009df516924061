#pragma once
// Threads on the CPU.

#include <algorithm>
#include <cstdint>

namespace lacuna {

/// Calls `body(begin, end)` on disjoint ranges that cover [0, count), on the OpenMP threads. Each range is `grain`
/// elements but the last, which may be shorter: a fact of `count` alone, so what is computed range by range does not
/// depend on the threads. Runs inline when there is only one range. `body` must not throw.
template <class Body>
void parallel_for(int64_t count, const Body& body, int64_t grain = 16384) {
  const int64_t grains = (count + grain - 1) / grain;
  if (grains <= 1) {
    if (count > 0) body(int64_t{0}, count);
    return;
  }
#pragma omp parallel for schedule(static)
  for (int64_t g = 0; g < grains; ++g) body(g * grain, std::min(count, (g + 1) * grain));
}

}  // namespace lacuna

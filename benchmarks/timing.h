#pragma once
// How benchmarks measure time.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

namespace lacuna {

/// Seconds of the fastest and of the median run. The best is what the machine can do undisturbed; a median far above
/// it tells of other guests on the machine.
struct Timing {
  double best_s = 0.0, median_s = 0.0;
  int64_t runs = 0;
};

/// Calls `fn` once to warm up, then again and again for about `seconds`, at least `least` times.
template <class Fn>
Timing time_runs(const Fn& fn, double seconds = 10.0, int64_t least = 3) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); };
  fn();
  std::vector<double> times;
  for (const auto start = Clock::now(); since(start) < seconds || static_cast<int64_t>(times.size()) < least;) {
    const auto run_start = Clock::now();
    fn();
    times.push_back(since(run_start));
  }
  std::sort(times.begin(), times.end());
  return {times.front(), times[times.size() / 2], static_cast<int64_t>(times.size())};
}

}  // namespace lacuna

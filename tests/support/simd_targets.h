#pragma once
// Every instruction set that a SIMD kernel was compiled for, in turn.

#include <functional>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <hwy/highway.h>

namespace lacuna::test {

/// Calls fn() once for each instruction set that this machine can run, all SIMD kernels forced to it.
inline void for_each_simd_target(const std::function<void()>& fn) {
  const std::vector<int64_t> targets = hwy::SupportedAndGeneratedTargets();
  REQUIRE(!targets.empty());
  for (const int64_t target : targets) {
    CAPTURE(std::string(hwy::TargetName(target)));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    fn();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace lacuna::test

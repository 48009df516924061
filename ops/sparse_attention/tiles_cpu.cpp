// Queries lie in the lanes: a tile of scores is S^T [key][query], so softmax statistics are vertical vector operations,
// a row of keys is broadcast from where it is stored, and only tiles of q and d_o are ever transposed.

#include "ops/sparse_attention/tiles_cpu.h"

#include <algorithm>

// SSSE3 alone is not worth a copy. Scalable vectors cannot be kept in arrays, which the kernels need: there NEON is
// used.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/sparse_attention/tiles_cpu.cpp"
#include <hwy/foreach_target.h>

#include "ops/sparse_attention/backward-inl.h"
#include "ops/sparse_attention/forward-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lacuna::cpu {
namespace HWY_NAMESPACE {

int64_t TileScratchFloats(int64_t d_qk, int64_t d_v) {
  const int64_t width = std::max(Padded(d_qk), Padded(d_v));
  const int64_t forward = 2 * kSlab * width + kStep * kTile + kTile * width + 2 * (kSlice + kTile) * (width + 16);
  const int64_t backward = 4 * kSlab * width + 2 * kStep * kTile + 6 * kTile * width + 2 * (kTile + 16);
  const int64_t gathered = 8 * kGathered * width + 2 * (kGathered + 16);
  return std::max(forward, backward) + gathered;
}

const char* TileTarget() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace lacuna::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lacuna::cpu {

HWY_EXPORT(ForwardSlice);
HWY_EXPORT(BackwardBlock);
HWY_EXPORT(TileScratchFloats);
HWY_EXPORT(TileTarget);

const char* tile_target() { return HWY_DYNAMIC_DISPATCH(TileTarget)(); }

int64_t tile_scratch_floats(int64_t d_qk, int64_t d_v) { return HWY_DYNAMIC_DISPATCH(TileScratchFloats)(d_qk, d_v); }

void forward_slice(const ForwardTask& task, const ForwardTask* next, float* scratch) {
  HWY_DYNAMIC_DISPATCH(ForwardSlice)(task, next, scratch);
}

void backward_block(const BackwardTask& task, const BackwardTask* next, float* scratch) {
  HWY_DYNAMIC_DISPATCH(BackwardBlock)(task, next, scratch);
}

}  // namespace lacuna::cpu
#endif

#pragma once
// The mask of dropout on a GPU and the sum after it, for the kernels that apply them.

#include "core/cuda/kernel.h"
#include "ops/dropout/dropout_kernels.h"

namespace lacuna::gpu {

/// values = dropout(values), eight neighbouring elements of row `sample` of the batch, the first its element `first`.
/// One Philox block when `first` is a multiple of 8, else one for each element.
__device__ inline void drop_eight(const DropoutMask& mask, float scale, int64_t sample, int64_t first,
                                  float (&values)[kEight]) {
  if (mask.threshold == 0) return;
  Rng::Place place = mask.first;
  place.sample += sample;
  const bool one_block = first % kEight == 0;
  uint64_t low = 0, high = 0;  // words 0 to 3 and 4 to 7 of the block
  for (int i = 0; i < kEight; ++i) {
    if (i == 0 || !one_block) {
      const Philox::Block block = mask.rng.bits(place, (first + i) / kEight);
      low = uint64_t{block.word[1]} << 32 | block.word[0];
      high = uint64_t{block.word[3]} << 32 | block.word[2];
    }
    const int e = one_block ? i : static_cast<int>((first + i) % kEight);
    const auto word = static_cast<uint32_t>((e < 4 ? low : high) >> (e % 4 * 16) & 0xffffu);
    values[i] = word < mask.threshold ? 0.0f : values[i] * scale;
  }
}

/// values += x[0, 8), which are read as in load_eight.
template <class T>
__device__ inline void add_eight(const T* x, int64_t count, bool aligned, float (&values)[kEight]) {
  float more[kEight];
  load_eight(x, count, aligned, more);
  for (int i = 0; i < kEight; ++i) values[i] += more[i];
}

}  // namespace lacuna::gpu

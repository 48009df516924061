#pragma once
// The units of sm_90 that work beside the threads of a block.

#include <deque>

#include "tests/cuda_emulation/copy_unit.h"
#include "tests/cuda_emulation/matrix_unit.h"

namespace lacuna::emulation {

struct AsyncUnits {
  AsyncUnits(Block& block, std::byte* shared, size_t bytes, size_t warps);
  void finish(void* end);  // of the block; see CopyUnit

  AsyncProxy proxy;
  CopyUnit copies;
  std::deque<MatrixUnit> products;  // one a warp
};

}  // namespace lacuna::emulation

#pragma once
// What changes from call to call of a model, and is not a weight.

#include <cstdint>

namespace lacuna {

/// The one argument that says where in a run a forward pass stands. Dropout draws its numbers by it.
struct Run {
  bool training = false;     // dropout acts only when training
  uint64_t seed = 0;
  int64_t step = 0;          // optimizer step
  int64_t first_sample = 0;  // place of this batch's first row in the step's global batch
};

}  // namespace lacuna

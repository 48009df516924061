#pragma once
// Whether sparse attention pays off at the length of a run.

#include <functional>
#include <optional>

#include "core/dtype.h"
#include "models/config.h"

namespace lacuna {

/// Seconds of one forward and backward pass of a mean layer's attention, of one sequence.
struct SlowerThanDense {
  double pattern_s, dense_s;
};

/// Seconds of forward and backward of attention over n positions.
using TimeAttention = std::function<double(const LayerPattern& pattern, int64_t n)>;

/// What `time` says of the model's attention and of dense attention with the same heads, if dense is faster; nothing
/// for a model that is dense. Dense attention is timed at shorter lengths first and no further than where it takes as
/// long as the pattern at n_ctx, so all of this costs a few passes of the pattern, however large n_ctx is.
std::optional<SlowerThanDense> slower_than_dense(const ModelConfig& config, const TimeAttention& time);

/// The best of a few short runs with the model's heads and widths, on this machine.
TimeAttention time_attention_of(const ModelConfig& config, DType dtype);

}  // namespace lacuna

#pragma once
// Scores of a model on held-out data.

#include <functional>
#include <optional>

#include "data/dataset.h"
#include "models/sparse_transformer.h"

namespace lacuna {

struct EvaluationOptions {
  Split split = Split::valid;
  int64_t windows = 0;                 // only the first so many sequences; 0: all
  std::optional<int64_t> min_context;  // of a text: slide the window by n_ctx - min_context and score what is new
  std::function<void(int64_t done, int64_t total)> progress;  // in windows; may throw to stop
};

struct Evaluation {
  double bits_per_dim = 0.0;  // mean negative log-likelihood per token in bits
  int64_t n = 0;              // tokens scored
};

/// Scores every token of the chosen windows once, without dropout; losses are added in f64, in the order of the data.
/// With min_context M, windows after the first score only their last n_ctx - M tokens, each of which then has at least
/// M tokens before it in the window (Table 3 of the paper).
/// Throws UsageError for a min_context that is not below n_ctx.
Evaluation evaluate(const SparseTransformer& model, const Dataset& data, const EvaluationOptions& options);

}  // namespace lacuna

#pragma once
// What a model costs, known before anything is allocated.

#include <array>
#include <string>
#include <vector>

#include "core/allocator.h"
#include "core/dtype.h"
#include "models/config.h"

namespace lacuna {

/// Number of (query, key) pairs that one head computes in a sequence of n positions: the pairs of the union of its
/// patterns. Takes O(n) time, and O(pairs) where patterns of different views are merged.
int64_t attention_pairs(const PatternUnion& patterns, int64_t n);

/// Arithmetic of one sequence of n_ctx positions. A multiplication with its addition counts as 2 operations; what is
/// not a matrix product (norms, activations, softmax, the optimizer) is not counted.
struct ComputeCost {
  int64_t parameters = 0;       // exact, of parameter_specs
  int64_t attention_pairs = 0;  // over all heads and layers

  // Matrices: 2 n_ctx (n_layers (2 d_model d_qk + 2 d_model^2 + 2 d_model d_ff) + d_model n_vocab).
  double forward_linear = 0.0;

  // q k^T and the weighted sum of v: 2 (d_qk + d_model) / n_heads for every pair.
  double forward_attention = 0.0;

  // A backward pass is two products for each of the forward pass, and recompute runs the blocks' forward pass once
  // more: 3 forward, or nearly 4. What backward recomputes inside one operation is not counted.
  double training = 0.0;

  double forward() const { return forward_linear + forward_attention; }
};
ComputeCost compute_cost(const ModelConfig& config);

struct TrainingSetup {
  int64_t batch = 1;         // sequences in one forward and backward pass
  DType dtype = DType::f32;  // of activations; parameters, gradients and optimizer are f32 beside bf16 and f16
  bool ema = true;
};

/// Peak bytes of a training step by MemoryCategory, each at its own worst moment, in the terms of the allocator:
///
///   parameters, gradients  one flat buffer each (autograd/parameters.h)
///   optimizer              two moments, and the average of `ema`
///   activations            see cost.cpp; with recompute one [batch, n_ctx, d_model] per block and the largest of one
///                          block's insides and the logits, without it the insides of all blocks
///   workspace              a bound: partial sums and statistics of a call, at most one [batch, n_ctx, d_model], and
///                          4 MiB for the tiles of the threads; in bf16 and f16 on the CPU also the f32 copies of what
///                          an operation reads and writes
std::array<int64_t, kMemoryCategories> training_bytes(const ModelConfig& config, const TrainingSetup& setup);

/// The decode cache of one sequence of n_ctx positions, over the layers of one kind.
struct DecodeCost {
  std::string pattern;
  int64_t layers = 0;
  int64_t bytes = 0;  // over these layers
};

/// Exact bytes of a Decoder's caches (ops/sparse_attention/decode.h) by kind of layer, in order of first appearance.
std::vector<DecodeCost> decode_cost(const ModelConfig& config, DType dtype);

/// The same if every layer kept every position.
int64_t dense_decode_bytes(const ModelConfig& config, DType dtype);

}  // namespace lacuna

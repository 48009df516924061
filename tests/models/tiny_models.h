#pragma once
// Models small enough to compare with everything.

#include <string>
#include <vector>

#include "core/rng.h"
#include "models/sparse_transformer.h"

namespace lacuna {

/// Every pattern and integration, with lengths that do not divide n_ctx = 23.
inline const std::vector<std::string> kPatterns{
    "dense",
    "local(window=5)",
    "column(stride=4)",
    "fixed_block(stride=6)",
    "local(window=4) + column(stride=4)",
    "local(window=4) | column(stride=4)",
    "column(stride=4), local(window=4), local(window=5)",
    "fixed_block(stride=6) + fixed_summary(stride=6, c=2, sub_blocks=2)",
    "fixed_block(stride=6) | fixed_summary(stride=6, c=2)",
    "fixed_block(stride=6), fixed_summary(stride=6, c=3, sub_blocks=2)",
    "dense, local(window=3) + fixed_summary(stride=7, c=1)",
    "local(window=3) + global(n=2), dilated(window=3, dilation=4)",
    "longnet(w=4:12, r=1:3)",
    "longnet(w=4:12, r=1:3) + local(window=5) + global(n=2) | dilated(window=3, dilation=2)",
};

inline ModelConfig tiny_config(const std::string& attention) {
  ModelConfig config;
  config.n_vocab = 11;
  config.n_ctx = 23;
  config.d_model = 16;
  config.n_layers = 3;
  config.n_heads = 4;
  config.d_qk = 8;
  config.d_ff = 24;
  config.position_extents = {5, 5};
  config.attention = parse_attention(attention);
  return config;
}

/// Adds normal numbers to every parameter, so that none is zero or one as in a fresh model.
inline void perturb(const SparseTransformer& model, double scale = 0.3) {
  const Rng rng(11, RandomPurpose::test);
  for (size_t i = 0; i < model.parameters().entries().size(); ++i) {
    const Tensor& value = model.parameters().entries()[i].variable.value();
    std::vector<double> noise(static_cast<size_t>(value.numel()));
    for (size_t e = 0; e < noise.size(); ++e)
      noise[e] = scale * rng.normal({.op = static_cast<int64_t>(i)}, static_cast<int64_t>(e));
    add_in_place(value, to_dtype(from_vector(noise, value.shape()), value.dtype()));
  }
  model.parameters().update_rounded();
}

inline Tensor random_tokens(int64_t batch, int64_t n, int64_t n_vocab) {
  const Rng rng(12, RandomPurpose::test);
  const Tensor tokens = empty({batch, n}, DType::u8);
  for (int64_t e = 0; e < tokens.numel(); ++e)
    tokens.data<uint8_t>()[e] = static_cast<uint8_t>(rng.uniform({}, e) * static_cast<double>(n_vocab));
  return tokens;
}

/// The elements of a tensor of f32 or f64.
inline std::vector<double> elements(const Tensor& t) { return to_vector<double>(to_dtype(t, DType::f64)); }

}  // namespace lacuna

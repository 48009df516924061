#pragma once
// The shape of a Sparse Transformer.

#include <map>
#include <string>
#include <vector>

#include "ops/sparse_attention/pattern.h"

namespace lacuna {

/// How weights begin. The paper writes 0.125 / sqrt(d_in) (Sec. 5.2, 6); the authors' later code draws with standard
/// deviation sqrt(0.125 / d_in) and embeddings with 0.01. The two differ by 2.83 in the weights.
enum class InitConvention { released_code, paper };

/// How the token and position tables begin: independent rows, as in the paper, or waves over the rows
/// (autograd/parameters.h), so that a model starts out knowing which values and which positions are near each other.
enum class EmbeddingInit { normal, waves };

/// A Sparse Transformer, Sec. 5 of the paper.
struct ModelConfig {
  int64_t n_vocab = 256;
  int64_t n_ctx = 0;  // positions in a sequence
  int64_t d_model = 0;
  int64_t n_layers = 0;  // residual blocks, each attention + feed-forward
  int64_t n_heads = 1;
  int64_t d_qk = 0;                       // width of q and k over all heads; 0: d_model ("half-size": d_model / 2)
  int64_t d_ff = 0;                       // 0: 4 * d_model ("half-size": 2 * d_model)
  float dropout = 0.0f;                   // at the end of both residual branches
  std::vector<int64_t> position_extents;  // one learned table per coordinate: {32, 32, 3} or {n_ctx / l, l}
  AttentionPattern attention;
  InitConvention init = InitConvention::released_code;
  EmbeddingInit embedding_init = EmbeddingInit::normal;
  float embedding_std = 0.0f;  // initial token vectors; position tables: over sqrt(their number); 0: as init says
  bool recompute = true;       // keep one tensor per block and recompute the block in backward (Sec. 5.4)

  int64_t qk_width() const { return d_qk ? d_qk : d_model; }
  int64_t ff_width() const { return d_ff ? d_ff : 4 * d_model; }
};

/// Throws UsageError that names the field, its value and the rule it breaks.
void validate(const ModelConfig& config);

/// The configuration as strings, for the metadata of a checkpoint and for config.toml: n_vocab, n_ctx, d_model,
/// n_layers, n_heads, d_qk, d_ff (both resolved), dropout, position_extents ("32,32,3"), attention (parse_attention),
/// init ("released_code" or "paper"), embedding_init ("normal" or "waves"), embedding_std, recompute ("true" or
/// "false").
std::map<std::string, std::string> to_strings(const ModelConfig& config);

/// The inverse. Throws UsageError that names the entry when one is missing, unknown or malformed; does not validate.
/// Only embedding_init and embedding_std may be missing, as in older files; they are then normal and 0.
ModelConfig model_config_from_strings(const std::map<std::string, std::string>& strings);

}  // namespace lacuna

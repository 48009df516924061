#pragma once
// Which positions attend to which: patterns (each in its file of patterns/) and how they are composed. The reference,
// the schedule, the kernels, decoding, the checks and the plots all start from here.

#include <string>
#include <string_view>
#include <vector>

#include "ops/sparse_attention/patterns/column.h"
#include "ops/sparse_attention/patterns/dense.h"
#include "ops/sparse_attention/patterns/dilated.h"
#include "ops/sparse_attention/patterns/fixed_block.h"
#include "ops/sparse_attention/patterns/fixed_summary.h"
#include "ops/sparse_attention/patterns/global.h"
#include "ops/sparse_attention/patterns/local.h"
#include "ops/sparse_attention/patterns/longnet.h"

namespace lacuna {

/// One softmax over the union of some patterns ("merged", Sec. 5.1 eq. 6).
using PatternUnion = std::vector<Pattern>;

/// The attention of one layer: head h attends to heads[h mod heads.size()]. One element: all heads alike; several:
/// heads are split over them (eq. 7-8).
struct LayerPattern {
  std::vector<PatternUnion> heads;

  /// The union of head h, with the head's own variant of every pattern whose heads differ.
  PatternUnion for_head(int64_t h) const;

  friend bool operator==(const LayerPattern&, const LayerPattern&) = default;
};

/// The attention of a model: layer r takes layers[r mod layers.size()] ("interleaved", eq. 5).
struct AttentionPattern {
  std::vector<LayerPattern> layers;
  const LayerPattern& for_layer(int64_t r) const { return layers[static_cast<size_t>(r) % layers.size()]; }
  friend bool operator==(const AttentionPattern&, const AttentionPattern&) = default;
};

/// Whether query i attends to key j under any of the patterns.
bool attends(const PatternUnion& patterns, int64_t i, int64_t j);

/// How often key j counts in the softmax of query i. Merging does not add up: 1 for a pair of ordinary patterns however
/// many have it; for a pair of patterns with multiplicities (LongNet) what the first of these says.
int64_t multiplicity(const PatternUnion& patterns, int64_t i, int64_t j);

/// Reads a pattern as a configuration writes it. Within a layer, `+` merges patterns in one softmax and `|` splits the
/// heads; `,` between layers interleaves them in a cycle:
///
///   dense
///   column(stride=96), local(window=96), local(window=96), local(window=96)
///   fixed_block(stride=128) + fixed_summary(stride=128, c=32, sub_blocks=4)
///   local(window=96) | column(stride=96)
///   local(window=64) + global(n=4), dilated(window=64, dilation=8), longnet(w=64:512, r=1:8)
///
/// Throws UsageError that names the pattern, field, value and rule, with a suggestion for a misspelled name.
AttentionPattern parse_attention(std::string_view text);

/// The inverse of parse_attention, in one canonical spelling.
std::string to_string(const AttentionPattern& attention);

/// Throws UsageError unless every field obeys its rule (all are in 1..2^40, and what the pattern's check() asks) and
/// n_heads is a multiple of the number of splits and of what each pattern needs.
void validate(const AttentionPattern& attention, int64_t n_heads);

}  // namespace lacuna

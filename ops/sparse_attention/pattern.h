#pragma once
// Which positions attend to which. Each pattern's predicate is written here once; the reference, the schedule, the
// kernels, decoding, the checks and the plots all call it.

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/rng.h"  // LACUNA_HOST_DEVICE

namespace lacuna {

/// All predicates answer for query i and key j, and imply 0 <= j <= i.

/// Every earlier position.
struct Dense {
  LACUNA_HOST_DEVICE bool operator()(int64_t i, int64_t j) const { return j <= i; }
  friend bool operator==(const Dense&, const Dense&) = default;
};

/// Sliding window: the last `window` positions, i among them. The released code has window = stride; the formula of
/// Sec. 4.2 is window = stride + 1.
struct Local {
  int64_t window = 0;
  LACUNA_HOST_DEVICE bool operator()(int64_t i, int64_t j) const { return j <= i && i - j < window; }
  friend bool operator==(const Local&, const Local&) = default;
};

/// The second head of the strided pattern, Sec. 4.2: positions a multiple of `stride` back.
struct Column {
  int64_t stride = 0;
  LACUNA_HOST_DEVICE bool operator()(int64_t i, int64_t j) const { return j <= i && (i - j) % stride == 0; }
  friend bool operator==(const Column&, const Column&) = default;
};

/// The first head of the fixed pattern, Sec. 4.2: earlier positions of the same block of `stride`.
struct FixedBlock {
  int64_t stride = 0;
  LACUNA_HOST_DEVICE bool operator()(int64_t i, int64_t j) const { return j <= i && j / stride == i / stride; }
  friend bool operator==(const FixedBlock&, const FixedBlock&) = default;
};

/// The second head of the fixed pattern, Sec. 4.2: c columns of every block of `stride`. Head h takes sub-block
/// h mod sub_blocks, counted from the end of the block (Sec. 4.2 asks for distinct sub-blocks; released code).
struct FixedSummary {
  int64_t stride = 0, c = 0, sub_blocks = 1;
  int64_t sub_block = 0;  // of this head; set by for_head()
  LACUNA_HOST_DEVICE bool operator()(int64_t i, int64_t j) const {
    const int64_t end = stride - sub_block * c;
    return j <= i && j % stride >= end - c && j % stride < end;
  }
  friend bool operator==(const FixedSummary&, const FixedSummary&) = default;
};

using Pattern = std::variant<Dense, Local, Column, FixedBlock, FixedSummary>;

/// One softmax over the union of some patterns ("merged", Sec. 5.1 eq. 6).
using PatternUnion = std::vector<Pattern>;

/// The attention of one layer: head h attends to heads[h mod heads.size()]. One element: all heads alike; several:
/// heads are split over them (eq. 7-8).
struct LayerPattern {
  std::vector<PatternUnion> heads;

  /// The union of head h, with the head's own sub-block in every FixedSummary: h mod sub_blocks.
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

/// Reads a pattern as a configuration writes it. Within a layer, `+` merges patterns in one softmax and `|` splits the
/// heads; `,` between layers interleaves them in a cycle:
///
///   dense
///   column(stride=96), local(window=96), local(window=96), local(window=96)
///   fixed_block(stride=128) + fixed_summary(stride=128, c=32, sub_blocks=4)
///   local(window=96) | column(stride=96)
///
/// Throws UsageError that names the pattern, field, value and rule, with a suggestion for a misspelled name.
AttentionPattern parse_attention(std::string_view text);

/// The inverse of parse_attention, in one canonical spelling.
std::string to_string(const AttentionPattern& attention);

/// Throws UsageError unless every field obeys its rule: stride, window, c, sub_blocks in 1..2^40; c * sub_blocks <=
/// stride; n_heads a multiple of the number of splits and of each sub_blocks.
void validate(const AttentionPattern& attention, int64_t n_heads);

}  // namespace lacuna

#pragma once
// How the work of a call is cut into launches, and what a launch carries.

#include <cstdint>
#include <vector>

#include "ops/sparse_attention/cuda/bands.h"

namespace lacuna {
struct AttentionProblem;
}

namespace lacuna::gpu {

/// The bands of one head: bands[first], ... of a BandTable. The launch computes those from `begin` up to `end`, counted
/// from `first`.
struct HeadBands {
  int16_t head = 0, first = 0, begin = 0, end = 0;
};

inline constexpr int kMaxHeads = 64;  // of one launch

/// The heads of one launch and their bands; heads alike share them. It travels in the parameters of the kernel, of
/// which there are at most 4 KiB.
struct BandTable {
  Band bands[kMaxBands];
  HeadBands heads[kMaxHeads];
  int n_bands = 0, n_heads = 0;
  int64_t tiles = 0;  // of the head that has the most
};

/// Which bands of a head one launch computes.
enum class Cut {
  head,     // all
  queries,  // a run of bands that share the groups of their queries; a tile holds queries
  keys,     // one; a tile holds keys
};

/// All launches of a call, in order: passes[m] are those of the m-th cut of every head that has one with rows. Throws
/// Error when a head has more than kMaxBands bands, or positions do not fit 31 bits.
std::vector<std::vector<BandTable>> passes_of(const AttentionProblem& problem, Cut cut, int64_t rows_per_tile);

/// Whether no key belongs to two groups of any band.
bool keys_have_one_group(const AttentionProblem& problem);

/// Whether every position is a key of some group of the first band of every head.
bool first_bands_have_all_keys(const AttentionProblem& problem);

/// Numbers [batch, n, n_heads, width] by strides in elements; the width is dense.
template <class T>
struct HeadRows {
  T* data = nullptr;
  int64_t batch = 0, token = 0, head = 0;

  LACUNA_HOST_DEVICE T* of(int64_t b, int64_t h) const { return data + b * batch + h * head; }
};

}  // namespace lacuna::gpu

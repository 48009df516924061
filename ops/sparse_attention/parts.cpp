#include "ops/sparse_attention/parts.h"

namespace lacuna {
namespace {

/// A view and what it belongs to.
struct Piece {
  View view;
  size_t pattern;  // its place in the union
  bool counted;    // of a pattern with multiplicities
};

int rank_of(const Piece& piece) {
  if (piece.counted) return 0;
  if (piece.view.contiguous()) return 1;
  return piece.view.prefix() ? 2 : 3;
}

}  // namespace

std::vector<Part> parts_of(const PatternUnion& patterns) {
  std::vector<Piece> pieces;
  for (size_t p = 0; p < patterns.size(); ++p)
    for (const View& view : patterns[p].views()) pieces.push_back({view, p, patterns[p].counts_keys()});
  std::stable_sort(pieces.begin(), pieces.end(),
                   [](const Piece& a, const Piece& b) { return rank_of(a) < rank_of(b); });

  std::vector<Part> parts;
  for (size_t p = 0; p < pieces.size(); ++p) {
    const Piece& piece = pieces[p];
    Part part{piece.view, {}, 0, {}};
    bool repeated = false;
    for (size_t e = 0; e < p; ++e) {
      const Piece& earlier = pieces[e];
      if (piece.counted && earlier.pattern == piece.pattern) continue;
      repeated = repeated || earlier.view == piece.view;
      if (earlier.view.contiguous())
        part.contiguous_before.push_back(earlier.view);
      else if (earlier.view.prefix())
        part.prefix_before = std::max(part.prefix_before, earlier.view.key_end);
      else
        part.scattered_before.push_back(earlier.view);
    }
    if (!repeated) parts.push_back(part);
  }
  return parts;
}

}  // namespace lacuna

#include "ops/sparse_attention/view.h"

namespace lacuna {
namespace {

View view_of(const Dense&) { return {}; }

View view_of(const Local& p) {
  View view;
  view.window = p.window;
  return view;
}

View view_of(const Column& p) {
  View view;
  view.residues = p.stride;
  view.keys_of_group_0 = {0, p.stride, 1};
  return view;
}

View view_of(const FixedBlock& p) {
  View view;
  view.segment = p.stride;
  return view;
}

View view_of(const FixedSummary& p) {
  View view;
  view.keys_of_group_0 = {p.stride - (p.sub_block + 1) * p.c, p.stride, p.c};
  return view;
}

}  // namespace

View view_of(const Pattern& pattern) {
  return std::visit([](const auto& p) { return view_of(p); }, pattern);
}

std::vector<Part> parts_of(const PatternUnion& patterns) {
  std::vector<Part> parts;
  std::vector<View> contiguous;
  for (const Pattern& pattern : patterns) {
    const View view = view_of(pattern);
    if (!view.contiguous()) continue;
    parts.push_back({view, contiguous, {}});
    contiguous.push_back(view);
  }
  PatternUnion scattered;
  for (const Pattern& pattern : patterns) {
    const View view = view_of(pattern);
    if (view.contiguous() || std::find(scattered.begin(), scattered.end(), pattern) != scattered.end()) continue;
    parts.push_back({view, contiguous, scattered});
    scattered.push_back(pattern);
  }
  return parts;
}

}  // namespace lacuna

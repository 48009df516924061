// A union of patterns: its parts are its views, and backward meets what forward meets.

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "core/error.h"
#include "ops/sparse_attention/analysis/check.h"
#include "ops/sparse_attention/analysis/violation.h"
#include "ops/sparse_attention/slicing_cpu.h"

namespace lacuna {
namespace {

/// A view of a union and what it belongs to.
struct OwnedView {
  View view;
  size_t pattern;
  bool counted;  // of a pattern with multiplicities
};

std::vector<OwnedView> owned_views(const PatternUnion& patterns) {
  std::vector<OwnedView> views;
  for (size_t p = 0; p < patterns.size(); ++p)
    for (const View& view : patterns[p].views()) views.push_back({view, p, patterns[p].counts_keys()});
  return views;
}

/// Where part.keys_of says that the keys of query i begin and end, as positions.
Range span_of(const Part& part, int64_t i) {
  Range span = part.view.span(i);
  span.begin = std::max(span.begin, part.prefix_before);
  for (const View& earlier : part.contiguous_before) span.end = std::min(span.end, earlier.first_position(i));
  return span;
}

/// Whether the indices `range` of a strip are those of its elements in `span`: seen from the elements at both ends.
bool holds_exactly(const Strip& strip, Range range, Range span) {
  const auto is_first_from = [&](int64_t t, int64_t position) {
    return t >= 0 && strip.position(t) >= position && (t == 0 || strip.position(t - 1) < position);
  };
  if (!is_first_from(range.begin, span.begin)) return false;
  return range.end == range.begin ? strip.position(range.end) >= span.end : is_first_from(range.end, span.end);
}

/// check_parts beyond the limit.
class PiecewiseComparison {
 public:
  PiecewiseComparison(const PatternUnion& patterns, const std::vector<Part>& parts, int64_t n)
      : views_(owned_views(patterns)), parts_(parts), n_(n) {
    check(views_.size() <= 64 && parts_.size() <= 64, "check_parts: at most 64 views in a union, got ", views_.size());
    std::vector<View> all;
    for (const OwnedView& owned : views_) all.push_back(owned.view);
    for (const Part& part : parts_) {
      all.push_back(part.view);
      all.insert(all.end(), part.scattered_before.begin(), part.scattered_before.end());
    }
    for (const View& view : all) {
      const Strip& keys = view.keys_of_group_0;
      if (keys.width < keys.period) period_ = keys.period >= n ? n : std::min(n, std::lcm(period_, keys.period));
      residues_ = view.residues >= n ? n : std::min(n, std::lcm(residues_, view.residues));
      const int64_t last_first = keys.first + view.residues - 1;  // where the keys of the last group begin
      if (last_first > keys.period - keys.width) irregular_ = std::max(irregular_, last_first);
    }
  }

  Finding run() {
    for (int64_t i = 0; i < n_ && !violation_; ++i) compare_row(i);
    const bool complete = rows_skipped_ == 0;
    return {violation_, complete ? "all rows" : concat("all rows but ", rows_skipped_), complete};
  }

 private:
  struct Case {  // what applies in a piece of a row
    uint64_t views = 0, parts = 0;
    int64_t residue = 0;
    auto operator<=>(const Case&) const = default;
  };

  void compare_row(int64_t i) {
    ends_ = {0, irregular_, i + 1};
    view_spans_.clear();
    part_spans_.clear();
    for (const OwnedView& owned : views_) add(owned.view.span(i), view_spans_);
    for (const Part& part : parts_) {
      add(span_of(part, i), part_spans_);
      for (const View& earlier : part.scattered_before) {
        ends_.push_back(earlier.span(i).begin);
        ends_.push_back(earlier.span(i).end);
      }
      const int64_t group = i % part.view.residues;
      if (!holds_exactly(part.view.keys(group), part.keys_of(group, i), part_spans_.back())) {
        violation_ = concat("the key run of query ", i, " is not the part's");
        return;
      }
    }
    std::sort(ends_.begin(), ends_.end());
    for (size_t e = 0; e + 1 < ends_.size() && !violation_; ++e)
      if (const Range piece{ends_[e], std::min(ends_[e + 1], i + 1)}; !piece.empty()) compare_piece(i, piece);
  }

  void add(Range span, std::vector<Range>& spans) {
    spans.push_back(span);
    ends_.push_back(span.begin);
    ends_.push_back(span.end);
  }

  static uint64_t covering(const std::vector<Range>& spans, Range piece) {
    uint64_t mask = 0;
    for (size_t s = 0; s < spans.size(); ++s)
      if (spans[s].begin <= piece.begin && piece.end <= spans[s].end) mask |= uint64_t{1} << s;
    return mask;
  }

  /// Where each view and each part either covers `piece` or has nothing in it.
  void compare_piece(int64_t i, Range piece) {
    const Case here{covering(view_spans_, piece), covering(part_spans_, piece), i % residues_};
    const auto [plain, is_new] = plain_.try_emplace({here.views, here.parts}, false);
    if (is_new) plain->second = is_plain(here.views, here.parts);
    if (plain->second || known_.contains(here)) return;
    const bool whole = piece.begin >= irregular_ && piece.end - piece.begin >= period_;
    const int64_t end = whole ? piece.begin + period_ : piece.end;
    if (answers_ + (end - piece.begin) > kMostAnswers) {
      rows_skipped_ += i != last_skipped_;
      last_skipped_ = i;
      return;
    }
    answers_ += end - piece.begin;
    for (int64_t j = piece.begin; j < end; ++j) {
      const int64_t needed = count_in_views(here.views, i, j), got = count_in_parts(here.parts, i, j);
      if (needed == got) continue;
      violation_ = Violation{{i, j}, needed, got}.in_words("the parts");
      return;
    }
    if (whole) known_.insert(here);
  }

  /// Cases that need no comparison: nothing is skipped, and either no view counts keys and the only part is a view that
  /// applies, alone or with all positions, or all views are of one pattern that counts keys, and the parts are the
  /// same.
  bool is_plain(uint64_t applying_views, uint64_t applying_parts) const {
    std::vector<View> views, parts;
    size_t counted = 0;
    std::set<size_t> patterns;
    for (size_t v = 0; v < views_.size(); ++v)
      if (applying_views >> v & 1) {
        views.push_back(views_[v].view);
        counted += views_[v].counted;
        patterns.insert(views_[v].pattern);
      }
    for (size_t p = 0; p < parts_.size(); ++p)
      if (applying_parts >> p & 1) {
        if (!parts_[p].scattered_before.empty()) return false;
        parts.push_back(parts_[p].view);
      }
    if (views.empty()) return parts.empty();
    if (counted == 0)
      return parts.size() == 1 && (views.size() == 1 || parts[0].contiguous() || parts[0].prefix()) &&
             std::find(views.begin(), views.end(), parts[0]) != views.end();
    return counted == views.size() && patterns.size() == 1 &&
           std::is_permutation(views.begin(), views.end(), parts.begin(), parts.end());
  }

  int64_t count_in_views(uint64_t applying, int64_t i, int64_t j) const {
    int64_t ordinary = 0, counted = 0;
    size_t counting = views_.size();  // the first pattern with multiplicities that has the pair
    for (size_t v = 0; v < views_.size(); ++v) {
      const OwnedView& owned = views_[v];
      if (!(applying >> v & 1) || !owned.view.has(i, j)) continue;
      if (!owned.counted) {
        ordinary = 1;
      } else if (counting == views_.size() || counting == owned.pattern) {
        counting = owned.pattern;
        ++counted;
      }
    }
    return counted > 0 ? counted : ordinary;
  }

  int64_t count_in_parts(uint64_t applying, int64_t i, int64_t j) const {
    int64_t count = 0;
    for (size_t p = 0; p < parts_.size(); ++p)
      if (applying >> p & 1) count += parts_[p].view.keys(i % parts_[p].view.residues).has(j) && !parts_[p].skips(i, j);
    return count;
  }

  static constexpr int64_t kMostAnswers = int64_t{1} << 29;

  const std::vector<OwnedView> views_;
  const std::vector<Part>& parts_;
  const int64_t n_;
  int64_t period_ = 1, residues_ = 1;  // of the keys of all views and parts, and of what depends on the query
  int64_t irregular_ = 0;              // keys before this position do not repeat
  std::map<std::pair<uint64_t, uint64_t>, bool> plain_;
  std::set<Case> known_;  // seen over a whole period
  int64_t answers_ = 0, rows_skipped_ = 0, last_skipped_ = -1;
  std::optional<std::string> violation_;

  std::vector<int64_t> ends_;  // of the runs of a row
  std::vector<Range> view_spans_, part_spans_;
};

/// How often each pair is met, as got[i * n + j].
class PairCounts {
 public:
  explicit PairCounts(int64_t n) : n_(n), counts_(static_cast<size_t>(n * n), 0) {}
  void add(int64_t i, int64_t j) { ++counts_.at(static_cast<size_t>(i * n_ + j)); }

  std::optional<std::string> differs_from(const PatternUnion& patterns, std::string_view whose) const {
    for (int64_t i = 0; i < n_; ++i)
      for (int64_t j = 0; j < n_; ++j) {
        const int64_t needed = multiplicity(patterns, i, j), got = counts_[static_cast<size_t>(i * n_ + j)];
        if (needed != got) return Violation{{i, j}, needed, got}.in_words(whose);
      }
    return {};
  }

 private:
  int64_t n_;
  std::vector<int32_t> counts_;
};

/// The keys of a slice of queries that lie in one slab, pair by pair.
void count_block(const cpu::Slicing& slicing, int64_t group, int64_t s, int64_t slab, PairCounts& counts) {
  const Strip queries = slicing.part->view.queries(group), keys = slicing.part->view.keys(group);
  const Range rows = slicing.slice(group, s), slab_keys = slicing.slab(group, slab);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const int64_t i = queries.position(r);
    const Range run = slicing.part->keys_of(group, i);
    for (int64_t t = std::max(run.begin, slab_keys.begin); t < std::min(run.end, slab_keys.end); ++t)
      if (const int64_t j = keys.position(t); !slicing.part->skips(i, j)) counts.add(i, j);
  }
}

/// What is wrong with the blocks of one group, or nothing.
std::optional<std::string> check_blocks(const cpu::Slicing& slicing, int64_t group, int64_t phases) {
  const Strip queries = slicing.part->view.queries(group);
  Range before{0, 0}, slab{0, 0};
  int64_t first_key = 0;  // of the earliest slab that the slice meets
  for (int64_t r = 0; r < slicing.rows_of(group); ++r) {
    const int64_t i = queries.position(r), s = r / slicing.rows;
    if (r % slicing.rows == 0) {
      const Range next = slicing.slab(group, s);
      if (s > 0 && next.begin != slab.end) return concat("the slabs of slices ", s - 1, " and ", s, " do not join");
      slab = next;
      first_key = slicing.slab(group, std::max<int64_t>(0, s - phases + 1)).begin;
    }
    const Range keys = slicing.part->keys_of(group, i);
    if (keys.begin < before.begin || keys.end < before.end)
      return concat("the key run of query ", i, " moves back: the queries of a key are not one run");
    before = keys;
    if (!keys.empty() && (keys.begin < first_key || keys.end > slab.end))
      return concat("missing pair: backward does not bring query ", i, " together with all its keys");
  }
  return {};
}

}  // namespace

Finding check_parts(const PatternUnion& patterns, const std::vector<Part>& parts, int64_t n, int64_t all_pairs_limit) {
  if (n > all_pairs_limit) return PiecewiseComparison(patterns, parts, n).run();
  PairCounts counts(n);
  for (int64_t i = 0; i < n; ++i) for_each_key(parts, i, [&](int64_t j) { counts.add(i, j); });
  return {counts.differs_from(patterns, "the parts"), "all pairs", true};
}

Finding check_backward(const PatternUnion& patterns, const std::vector<Part>& parts, int64_t n,
                       int64_t all_pairs_limit) {
  const bool all_pairs = n <= all_pairs_limit;
  Finding finding;
  PairCounts counts(all_pairs ? n : 0);
  int64_t blocks = 0, most_phases = 0;
  for (const Part& part : parts) {
    const cpu::Slicing slicing = cpu::backward_slicing(&part, n);
    const int64_t phases = slicing.phases();
    most_phases = std::max(most_phases, phases);
    for (int64_t group = 0; group < slicing.groups(); ++group) {
      if (finding.holds()) finding.violation = check_blocks(slicing, group, phases);
      for (int64_t s = 0; s * slicing.rows < slicing.rows_of(group); ++s)
        for (int64_t phase = 0; phase < std::min(phases, s + 1); ++phase, ++blocks)
          if (all_pairs) count_block(slicing, group, s, s - phase, counts);
    }
  }
  if (finding.holds() && all_pairs) finding.violation = counts.differs_from(patterns, "the blocks of backward");
  finding.evidence = concat(all_pairs ? "all pairs" : "all rows", ", in ", blocks, blocks == 1 ? " block" : " blocks");
  return finding;
}

}  // namespace lacuna

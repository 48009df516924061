// One pattern: its views are well formed, and are its predicate.

#include <algorithm>

#include "core/error.h"
#include "ops/sparse_attention/analysis/check.h"
#include "ops/sparse_attention/analysis/violation.h"

namespace lacuna {
namespace {

constexpr int64_t kMostAnswers = int64_t{1} << 30;  // of a predicate at large n: seconds

/// Compares a pattern with its views; several threads may.
class PredicateComparison {
 public:
  PredicateComparison(const Pattern& pattern, int64_t n) : pattern_(pattern), views_(pattern.views()), n_(n) {}

  const std::vector<View>& views() const { return views_; }

  /// For the pairs of query i and `keys`, of which those that are no positions are left out.
  void compare(int64_t i, Range keys) {
    constexpr int64_t kChunk = 2048;
    int64_t needed[kChunk], got[kChunk];
    keys = {std::max<int64_t>(0, keys.begin), std::min(keys.end, n_)};
    for (int64_t begin = keys.begin; begin < keys.end; begin += kChunk) {
      const int64_t end = std::min(begin + kChunk, keys.end);
      pattern_.multiplicities(i, begin, end, needed);
      std::fill(got, got + (end - begin), 0);
      for (const View& view : views_) {
        const Strip strip = view.keys(i % view.residues);
        const Range span = view.span(i);
        const int64_t last = strip.rank(std::min(end, span.end));
        for (int64_t t = strip.rank(std::max(begin, span.begin)); t < last; ++t) ++got[strip.position(t) - begin];
      }
      for (int64_t j = begin; j < end; ++j) {
        if (!counts_keys_) got[j - begin] = std::min<int64_t>(got[j - begin], 1);  // overlaps are allowed
        if (got[j - begin] != needed[j - begin]) return violation_.add({{i, j}, needed[j - begin], got[j - begin]});
      }
    }
  }

  Finding finding(std::string evidence, bool complete) const {
    return {violation_.in_words("the views"), std::move(evidence), complete};
  }

 private:
  const Pattern& pattern_;
  const bool counts_keys_ = pattern_.counts_keys();
  const std::vector<View> views_;
  const int64_t n_;
  FirstViolation violation_;
};

}  // namespace

Finding check_views(const std::vector<View>& views) {
  const auto bad = [](const auto&... words) {
    return Finding{concat("a view cannot be followed: ", words...), "", true};
  };
  for (const View& view : views) {
    const Strip& keys = view.keys_of_group_0;
    if (view.residues < 1) return bad("residues must be at least 1, is ", view.residues);
    if (keys.period < 1) return bad("the period of its keys must be at least 1, is ", keys.period);
    if (keys.width < 1 || keys.width > keys.period)
      return bad("the width of its keys must be from 1 to their period ", keys.period, ", is ", keys.width);
    if (keys.first < 0) return bad("its first key must be at least 0, is ", keys.first);
    if (view.window < 1) return bad("window must be at least 1, is ", view.window);
    if (view.segment < 1) return bad("segment must be at least 1, is ", view.segment);
    if (view.residues - 1 > keys.period - keys.width && view.residues > 1)
      return bad("groups must not share keys, but there are ", view.residues, " groups that each have ", keys.width,
                 " of every ", keys.period, " positions");
  }
  return {{}, concat(views.size(), views.size() == 1 ? " view" : " views"), true};
}

Finding check_predicate(const Pattern& pattern, int64_t n, int64_t all_pairs_limit) {
  PredicateComparison comparison(pattern, n);
  const int64_t first = std::min(n, all_pairs_limit);
#pragma omp parallel for schedule(dynamic, 16)
  for (int64_t i = 0; i < first; ++i) comparison.compare(i, {0, first});
  if (first == n) return comparison.finding("all pairs", true);

  const Periodicity repeats = periodicity(comparison.views(), n);
  const int64_t rows = std::clamp<int64_t>(kMostAnswers / n, 1, repeats.period);
  const int64_t columns = std::min(repeats.irregular, kMostAnswers / n);
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t row = 0; row < rows; ++row) comparison.compare(n - 1 - row * (repeats.period / rows), {0, n});
#pragma omp parallel for schedule(dynamic, 256)
  for (int64_t i = 0; i < n; ++i) {
    comparison.compare(i, {0, columns});
    for (const View& view : comparison.views()) {
      const Strip keys = view.keys(i % view.residues);
      const Range span = view.span(i);
      for (const int64_t end : {span.begin, span.end, keys.position(keys.rank(span.end))})
        comparison.compare(i, {end - 2, end + 2});
    }
    const auto j = static_cast<int64_t>(static_cast<uint64_t>(i) * 0x9e3779b97f4a7c15U % static_cast<uint64_t>(n));
    comparison.compare(i, {j, j + 1});  // spread over all distances
  }
  const bool complete = rows == repeats.period && columns == repeats.irregular;
  return comparison.finding(complete ? concat("all keys of one period of ", rows, " queries")
                                     : concat("all keys of ", rows, " queries in a period of ", repeats.period),
                            complete);
}

}  // namespace lacuna

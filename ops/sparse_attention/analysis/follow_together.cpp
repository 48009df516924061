// Many sources at once: a bit of each position says whether it reaches a source.

#include <algorithm>
#include <array>

#include "core/error.h"
#include "ops/sparse_attention/analysis/follow.h"

namespace lacuna {
namespace {

using Mask = FollowTogether::Mask;

void operator|=(Mask& mask, const Mask& other) {
  for (size_t w = 0; w < mask.words.size(); ++w) mask.words[w] |= other.words[w];
}
void operator&=(Mask& mask, const Mask& other) {
  for (size_t w = 0; w < mask.words.size(); ++w) mask.words[w] &= other.words[w];
}
bool has(const Mask& mask, int64_t source) { return mask.words[static_cast<size_t>(source / 64)] >> (source % 64) & 1; }
void add(Mask& mask, int64_t source) { mask.words[static_cast<size_t>(source / 64)] |= uint64_t{1} << (source % 64); }
bool same(const Mask& a, const Mask& b) { return a.words == b.words; }

using Masks = std::vector<Mask>;  // of all positions

/// The run of keys of a group's last query. It only ever moves on, so that the union over it takes two steps a key:
/// that over [mid, end) grows with the end, and those over [t, mid) are made for all t at once, each time that the
/// beginning passes mid.
struct KeyRun {
  int64_t begin = 0, mid = 0, end = 0;
  Mask from_mid;
};

/// What the queries of a view reach through it: next[i] |= reached[j] for every key j of i. Nothing before `first`
/// reaches a source. `from_here` is for the unions up to mid, each at the place of its key.
void add_queries(const View& view, int64_t n, int64_t first, const Masks& reached, Masks& next, Masks& from_here) {
  std::vector<KeyRun> runs(static_cast<size_t>(view.groups(n)));
  for (int64_t group = 0; group < view.groups(n); ++group) {
    const int64_t t = view.keys(group).rank(first);
    runs[static_cast<size_t>(group)] = {t, t, t, {}};
  }
  int64_t group = first % view.residues;
  for (int64_t i = first; i < n; ++i, group = group + 1 == view.residues ? 0 : group + 1) {
    KeyRun& run = runs[static_cast<size_t>(group)];
    const Strip keys = view.keys(group);
    const Range span = view.span(i);
    for (; keys.position(run.end) < span.end; ++run.end)
      run.from_mid |= reached[static_cast<size_t>(keys.position(run.end))];
    while (run.begin < run.end && keys.position(run.begin) < span.begin) ++run.begin;
    if (run.begin > run.mid) {
      Mask all;
      for (int64_t t = run.end - 1; t >= run.begin; --t) {
        const auto key = static_cast<size_t>(keys.position(t));
        all |= reached[key];
        from_here[key] = all;
      }
      run.from_mid = {};
      run.mid = run.end;
    }
    next[static_cast<size_t>(i)] |= run.from_mid;
    if (run.begin < run.mid) next[static_cast<size_t>(i)] |= from_here[static_cast<size_t>(keys.position(run.begin))];
  }
}

/// The sources that every later position reaches; `known` are some of them.
Mask reached_by_all(Range sources, int64_t n, const Masks& reached, const Mask& known) {
  Mask all;
  for (int64_t s = sources.begin; s < sources.end; ++s) add(all, s - sources.begin);
  for (int64_t i = sources.begin; i < n && !same(all, known); ++i) {
    Mask here = reached[static_cast<size_t>(i)];
    for (int64_t s = i + 1; s < sources.end; ++s) add(here, s - sources.begin);
    all &= here;
  }
  return all;
}

/// The first later position that does not reach the source, or n.
int64_t first_gap(int64_t source, int64_t bit, int64_t n, const Masks& reached) {
  int64_t i = source;
  while (i < n && has(reached[static_cast<size_t>(i)], bit)) ++i;
  return i;
}

}  // namespace

FollowTogether::FollowTogether(const ViewCycle& cycle, int64_t n, int64_t limit)
    : cycle_(cycle), n_(n), limit_(limit), reached_(static_cast<size_t>(n)), next_(reached_), from_here_(reached_) {}

std::vector<Followed> FollowTogether::follow(Range sources) {
  const int64_t count = sources.end - sources.begin, layers = static_cast<int64_t>(cycle_.size());
  check(count >= 1 && count <= kFollowedTogether && sources.end <= n_, "follow: needs 1 to ", kFollowedTogether,
        " sources before ", n_, ", got ", sources.begin, " to ", sources.end);
  std::vector<Followed> results(static_cast<size_t>(count), {0, n_, n_, 0, 0});
  const auto for_each_source = [&](const auto& fn) {
    for (int64_t bit = 0; bit < count; ++bit) fn(results[static_cast<size_t>(bit)], bit);
  };
  Mask every;
  std::fill(reached_.begin(), reached_.end(), every);
  for_each_source([&](const Followed&, int64_t bit) {
    add(every, bit);
    add(reached_[static_cast<size_t>(sources.begin + bit)], bit);
  });

  Mask complete = reached_by_all(sources, n_, reached_, {});
  int64_t layer = 0;
  for (int64_t unchanged = 0; !same(complete, every) && unchanged < layers; ++layer) {
    if (layer == limit_)
      for_each_source(
          [&](Followed& one, int64_t bit) { one.missing = first_gap(sources.begin + bit, bit, n_, reached_); });
    std::copy(reached_.begin() + sources.begin, reached_.end(), next_.begin() + sources.begin);
    for (const View& view : cycle_[static_cast<size_t>(layer % layers)]) {
      add_queries(view, n_, sources.begin, reached_, next_, from_here_);
      results[0].work += n_ - sources.begin;
    }
    const bool is_same =
        std::equal(reached_.begin() + sources.begin, reached_.end(), next_.begin() + sources.begin, same);
    unchanged = is_same ? unchanged + 1 : 0;
    std::swap(reached_, next_);
    const Mask now = reached_by_all(sources, n_, reached_, complete);
    for_each_source([&](Followed& one, int64_t bit) {
      if (has(now, bit) && !has(complete, bit)) one.layers = layer + 1;
    });
    complete = now;
  }
  for_each_source([&](Followed& one, int64_t bit) {
    one.rounds = layer;
    one.never = first_gap(sources.begin + bit, bit, n_, reached_);
    if (layer <= limit_) one.missing = one.never;
  });
  return results;
}

}  // namespace lacuna

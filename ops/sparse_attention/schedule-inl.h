// Which keys a tile of queries meets, and the products that leave out what it does not. Compiled once for each
// instruction set (Highway's foreach_target).
#if defined(LACUNA_OPS_SPARSE_ATTENTION_SCHEDULE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LACUNA_OPS_SPARSE_ATTENTION_SCHEDULE_INL_H_
#undef LACUNA_OPS_SPARSE_ATTENTION_SCHEDULE_INL_H_
#else
#define LACUNA_OPS_SPARSE_ATTENTION_SCHEDULE_INL_H_
#endif

#include <algorithm>

#include "ops/sparse_attention/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lacuna::cpu::HWY_NAMESPACE {

/// For each lane of a tile its run of keys, relative to the first key packed. Lanes after the last query repeat it.
struct TileKeys {
  int32_t begin[kTile], end[kTile];

  TileKeys(const Range* rows, int64_t count, int64_t origin, int64_t limit) {
    for (int64_t lane = 0; lane < kTile; ++lane) {
      const Range& keys = rows[std::min(lane, count - 1)];
      begin[lane] = static_cast<int32_t>(std::clamp<int64_t>(keys.begin - origin, 0, limit));
      end[lane] = static_cast<int32_t>(std::clamp<int64_t>(keys.end - origin, 0, limit));
    }
  }
};

/// Keys [begin, end) that are met by some lane of vectors [first, last) and by no lane of the others.
struct Segment {
  int begin, end, first, last;
};

/// The keys [begin, end) of a tile, cut so that each vector either meets a segment or does not. As both ends of the
/// lanes' runs never move back, the vectors that meet a key are neighbours, and there are at most 2 * kVectors
/// segments.
struct TileSchedule {
  int vectors;                                       // that hold queries
  int vector_begin[kVectors], vector_end[kVectors];  // keys that some lane of the vector meets
  int full_begin[kVectors], full_end[kVectors];      // those that all its lanes meet
  Segment segments[2 * kVectors];
  int count = 0;

  TileSchedule(const TileKeys& keys, int lanes, int begin, int end) : vectors((lanes + kLanes - 1) / kLanes) {
    for (int x = 0; x < vectors; ++x) {
      const int lane = x * kLanes, last_lane = lane + kLanes - 1;
      vector_begin[x] = std::clamp(static_cast<int>(keys.begin[lane]), begin, end);
      vector_end[x] = std::clamp(static_cast<int>(keys.end[last_lane]), vector_begin[x], end);
      full_begin[x] = std::clamp(static_cast<int>(keys.begin[last_lane]), vector_begin[x], vector_end[x]);
      full_end[x] = std::clamp(static_cast<int>(keys.end[lane]), full_begin[x], vector_end[x]);
    }
    int first = 0, last = 0;
    for (int t = begin; t < end;) {
      while (first < vectors && vector_end[first] <= t) ++first;
      if (first == vectors) break;
      last = std::max(last, first);
      while (last < vectors && vector_begin[last] <= t) ++last;
      const int next_begin = last < vectors ? vector_begin[last] : end;
      if (last == first) {  // nobody meets t
        t = next_begin;
        continue;
      }
      const int next = std::min(vector_end[first], next_begin);
      segments[count++] = {t, next, first, last};
      t = next;
    }
  }

  bool empty() const { return count == 0; }
};

/// Of vector x, the lanes whose run has key t.
HWY_INLINE hn::Mask<Floats> InRun(const TileKeys& keys, int x, int t) {
  const auto begin = hn::LoadU(Ints(), keys.begin + x * kLanes), end = hn::LoadU(Ints(), keys.end + x * kLanes);
  return hn::RebindMask(Floats(), hn::And(hn::Lt(begin, hn::Set(Ints(), t + 1)), hn::Gt(end, hn::Set(Ints(), t))));
}

/// s [key - begin][kTile] = a * b over the segments of a tile: a [key][depth] packed rows, b [depth][kTile].
HWY_INLINE void Scores(Ahead& ahead, const TileSchedule& schedule, int begin, const float* a, int64_t depth,
                       const float* b, float* s) {
  const int64_t padded = Padded(depth);
  for (int i = 0; i < schedule.count; ++i) {
    const Segment& g = schedule.segments[i];
    Product<false>(ahead, g.end - g.begin, g.last - g.first, depth, {a + g.begin * padded, padded, 1},
                   b + g.first * kLanes, kTile, s + (g.begin - begin) * kTile + g.first * kLanes, kTile);
  }
}

/// Rows of a product that take the same keys or lanes, where some of them have weight 0. A row that is not finite must
/// not meet such a zero: then each row is computed alone, over exactly its own.
HWY_INLINE int RowsAtOnce(bool finite) { return finite ? kRows : 1; }

/// c [lane][width] += s^T * b over the keys [begin, end): s [key - begin][kTile], b [key][width] packed rows, all
/// finite or not. A block of lanes takes only the keys that some of them meet.
HWY_INLINE void AddOverKeys(Ahead& ahead, const TileKeys& keys, int lanes, int begin, int end, const float* s,
                            const float* b, bool finite, int64_t width, float* c) {
  const int64_t padded = Padded(width);
  ForEachRowBlock(lanes, RowsAtOnce(finite), [&](int lane, int count) HWY_ATTR {
    const int first = std::max(begin, keys.begin[lane]), last = std::min(end, keys.end[lane + count - 1]);
    if (first < last)
      Product<true>(ahead, count, padded / kLanes, last - first, {s + (first - begin) * kTile + lane, 1, kTile},
                    b + first * padded, padded, c + lane * padded, padded);
  });
}

/// c [key][width] += s * b over the keys [begin, end): s [key - begin][kTile], b [lane][width] packed rows, all finite
/// or not. A block of keys takes only the lanes that meet some of them.
HWY_INLINE void AddOverQueries(Ahead& ahead, const TileKeys& keys, int lanes, int begin, int end, const float* s,
                               const float* b, bool finite, int64_t width, float* c) {
  const int64_t padded = Padded(width);
  int first = 0, last = 0;
  ForEachRowBlock(end - begin, RowsAtOnce(finite), [&](int row, int count) HWY_ATTR {
    const int key = begin + row;
    while (first < lanes && keys.end[first] <= key) ++first;
    while (last < lanes && keys.begin[last] < key + count) ++last;
    if (first < last)
      Product<true>(ahead, count, padded / kLanes, last - first, {s + row * kTile + first, kTile, 1},
                    b + first * padded, padded, c + key * padded, padded);
  });
}

/// Scores of pairs that an earlier part has are -inf. `row` and `key` are the indices of lane 0 and of key 0.
void SkipEarlierParts(const TileSchedule& schedule, const Part& part, int64_t group, int64_t row, int64_t count,
                      int64_t key, int begin, float* s) {
  if (part.scattered_before.empty()) return;
  const Strip queries = part.view.queries(group), keys = part.view.keys(group);
  for (int x = 0; x < schedule.vectors; ++x)
    for (int t = schedule.vector_begin[x]; t < schedule.vector_end[x]; ++t)
      for (int64_t lane = x * kLanes; lane < std::min<int64_t>(count, (x + 1) * kLanes); ++lane)
        if (part.skips(queries.position(row + lane), keys.position(key + t)))
          s[(t - begin) * kTile + lane] = -kInfinity;
}

/// Hands out pieces of scratch, each aligned to 64 bytes.
struct Scratch {
  float* next;
  float* take(int64_t floats) {
    float* const piece = next;
    next += (floats + 15) / 16 * 16;
    return piece;
  }
};

/// The key runs of the queries `rows` of a group.
HWY_INLINE void KeysOfRows(const Part& part, int64_t group, Range rows, Range* keys) {
  const Strip queries = part.view.queries(group);
  for (int64_t r = rows.begin; r < rows.end; ++r) keys[r - rows.begin] = part.keys_of(group, queries.position(r));
}

}  // namespace lacuna::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LACUNA_OPS_SPARSE_ATTENTION_SCHEDULE_INL_H_

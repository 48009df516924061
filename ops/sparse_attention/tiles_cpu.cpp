// Queries lie in the lanes: a tile of scores is S^T [key][query], so softmax statistics are vertical vector operations,
// a row of keys is broadcast from where it is stored, and only tiles of q and d_o are ever transposed.

#include "ops/sparse_attention/tiles_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>

// SSSE3 alone is not worth a copy. Scalable vectors cannot be kept in arrays, which the kernels need: there NEON is
// used.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/sparse_attention/tiles_cpu.cpp"
#include <hwy/foreach_target.h>

#include "ops/sparse_attention/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lacuna::cpu {
namespace HWY_NAMESPACE {

// --- Which keys a tile of queries meets ---

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
  int vector_begin[kVectors], vector_end[kVectors];  // keys that some lane of the vector meets
  int full_begin[kVectors], full_end[kVectors];      // those that all its lanes meet
  Segment segments[2 * kVectors];
  int count = 0;

  TileSchedule(const TileKeys& keys, int begin, int end) {
    for (int x = 0; x < kVectors; ++x) {
      const int lane = x * kLanes, last_lane = lane + kLanes - 1;
      vector_begin[x] = std::clamp(static_cast<int>(keys.begin[lane]), begin, end);
      vector_end[x] = std::clamp(static_cast<int>(keys.end[last_lane]), vector_begin[x], end);
      full_begin[x] = std::clamp(static_cast<int>(keys.begin[last_lane]), vector_begin[x], vector_end[x]);
      full_end[x] = std::clamp(static_cast<int>(keys.end[lane]), full_begin[x], vector_end[x]);
    }
    int first = 0, last = 0;
    for (int t = begin; t < end;) {
      while (first < kVectors && vector_end[first] <= t) ++first;
      if (first == kVectors) break;
      last = std::max(last, first);
      while (last < kVectors && vector_begin[last] <= t) ++last;
      const int next_begin = last < kVectors ? vector_begin[last] : end;
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

/// The scores of vector x at key t, with -inf where the lane's run does not have the key.
HWY_INLINE V MaskedScores(V s, const TileKeys& keys, int x, int t) {
  const auto begin = hn::LoadU(Ints(), keys.begin + x * kLanes), end = hn::LoadU(Ints(), keys.end + x * kLanes);
  const auto in_run = hn::And(hn::Lt(begin, hn::Set(Ints(), t + 1)), hn::Gt(end, hn::Set(Ints(), t)));
  return hn::IfThenElse(hn::RebindMask(Floats(), in_run), s, Set(-kInfinity));
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

/// c [lane][width] += s^T * b over the keys [begin, end): s [key - begin][kTile], b [key][width] packed rows. A block
/// of lanes takes only the keys that some of them meet.
HWY_INLINE void AddOverKeys(Ahead& ahead, const TileKeys& keys, int lanes, int begin, int end, const float* s,
                            const float* b, int64_t width, float* c) {
  const int64_t padded = Padded(width);
  for (int lane = 0; lane < lanes; lane += kRows) {
    const int count = std::min(kRows, lanes - lane);
    const int first = std::max(begin, keys.begin[lane]), last = std::min(end, keys.end[lane + count - 1]);
    if (first < last)
      Product<true>(ahead, count, padded / kLanes, last - first, {s + (first - begin) * kTile + lane, 1, kTile},
                    b + first * padded, padded, c + lane * padded, padded);
  }
}

/// c [key][width] += s * b over the keys [begin, end): s [key - begin][kTile], b [lane][width] packed rows. A block of
/// keys takes only the lanes that meet some of them.
HWY_INLINE void AddOverQueries(Ahead& ahead, const TileKeys& keys, int lanes, int begin, int end, const float* s,
                               const float* b, int64_t width, float* c) {
  const int64_t padded = Padded(width);
  for (int key = begin, first = 0, last = 0; key < end; key += kRows) {
    const int count = std::min(kRows, end - key);
    while (first < lanes && keys.end[first] <= key) ++first;
    while (last < lanes && keys.begin[last] < key + count) ++last;
    if (first < last)
      Product<true>(ahead, count, padded / kLanes, last - first, {s + (key - begin) * kTile + first, kTile, 1},
                    b + first * padded, padded, c + key * padded, padded);
  }
}

/// Scores of pairs that an earlier part has are -inf. `row` and `key` are the indices of lane 0 and of key 0.
void SkipEarlierParts(const TileSchedule& schedule, const Part& part, int64_t group, int64_t row, int64_t count,
                      int64_t key, int begin, float* s) {
  if (part.scattered_before.empty()) return;
  const Strip queries = part.view.queries(group), keys = part.view.keys(group);
  for (int x = 0; x < kVectors; ++x)
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

// --- Forward ---

/// The softmax of a tile so far: scores are in units of log 2, o is relative to 2^largest.
struct TileState {
  float* q;        // [d_qk][kTile], scaled
  float* o;        // [kTile][d_v]
  float* largest;  // [kTile]
  float* sum;      // [kTile]
};

/// s = 2^(s - largest) for one vector of queries, after `largest` has taken in the scores of the step; sum and o
/// follow.
HWY_INLINE void SoftmaxStep(const TileKeys& keys, const TileSchedule& schedule, int x, int begin, int end, float* s,
                            const TileState& state, int64_t width_v) {
  const int t0 = schedule.vector_begin[x], t1 = schedule.full_begin[x], t2 = schedule.full_end[x],
            t3 = schedule.vector_end[x];
  float* const sx = s + x * kLanes - begin * kTile;
  for (int t = begin; t < t0; ++t) Store(hn::Zero(Floats()), sx + t * kTile);
  for (int t = t3; t < end; ++t) Store(hn::Zero(Floats()), sx + t * kTile);
  if (t0 == t3) return;

  V top[2] = {Load(state.largest + x * kLanes), Set(-kInfinity)};
  const V before = top[0];
  const auto mask = [&](int from, int to) HWY_ATTR {
    for (int t = from; t < to; ++t) {
      const V masked = MaskedScores(Load(sx + t * kTile), keys, x, t);
      Store(masked, sx + t * kTile);
      top[0] = hn::Max(top[0], masked);
    }
  };
  mask(t0, t1);
  int t = t1;
  for (; t + 2 <= t2; t += 2) {
    top[0] = hn::Max(top[0], Load(sx + t * kTile));
    top[1] = hn::Max(top[1], Load(sx + (t + 1) * kTile));
  }
  for (; t < t2; ++t) top[0] = hn::Max(top[0], Load(sx + t * kTile));
  mask(t2, t3);

  const V largest = hn::Max(top[0], top[1]);
  const V reference = hn::IfThenZeroElse(hn::Eq(largest, Set(-kInfinity)), largest);  // a row without keys so far
  const V shrink = Exp2(hn::Sub(before, reference));
  V sum[2] = {hn::Mul(Load(state.sum + x * kLanes), shrink), hn::Zero(Floats())};
  for (t = t0; t + 2 <= t3; t += 2) {
    const V p0 = Exp2(hn::Sub(Load(sx + t * kTile), reference));
    const V p1 = Exp2(hn::Sub(Load(sx + (t + 1) * kTile), reference));
    sum[0] = hn::Add(sum[0], p0);
    sum[1] = hn::Add(sum[1], p1);
    Store(p0, sx + t * kTile);
    Store(p1, sx + (t + 1) * kTile);
  }
  if (t < t3) {
    const V p = Exp2(hn::Sub(Load(sx + t * kTile), reference));
    sum[0] = hn::Add(sum[0], p);
    Store(p, sx + t * kTile);
  }
  Store(largest, state.largest + x * kLanes);
  Store(hn::Add(sum[0], sum[1]), state.sum + x * kLanes);
  if (hn::AllTrue(Floats(), hn::Eq(before, largest))) return;
  float shrink_of[kLanes];
  Store(shrink, shrink_of);
  for (int lane = 0; lane < kLanes; ++lane) {
    float* const o = state.o + (x * kLanes + lane) * width_v;
    if (shrink_of[lane] != 1.0f)
      for (int64_t c = 0; c < width_v; c += kLanes) Store(hn::Mul(Load(o + c), Set(shrink_of[lane])), o + c);
  }
}

/// Keys [begin, end) that some of the queries meet.
HWY_INLINE Range Span(const Part& part, int64_t group, Range rows) {
  const Strip queries = part.view.queries(group);
  return {part.keys_of(group, queries.position(rows.begin)).begin,
          part.keys_of(group, queries.position(rows.end - 1)).end};
}

/// What the next task reads and writes first.
void FetchForward(const ForwardTask& next, Ahead& ahead) {
  const Strip queries = next.part->view.queries(next.group), key_list = next.part->view.keys(next.group);
  const Range span = Span(*next.part, next.group, next.rows);
  const int64_t end = std::min(span.end, span.begin + kSlab);
  ahead.add(next.head.q, queries, next.rows.begin, next.rows.end);
  ahead.add(next.head.k, key_list, span.begin, end);
  ahead.add(next.head.v, key_list, span.begin, end);
  ahead.add(next.head.o, queries, next.rows.begin, next.rows.end);
}

void ForwardSlice(const ForwardTask& task, const ForwardTask* next, float* memory) {
  const HeadSequence& head = task.head;
  const Part& part = *task.part;
  const int64_t group = task.group;
  const Range rows = task.rows;
  const bool merge = task.merge;
  const Strip queries = part.view.queries(group), key_list = part.view.keys(group);
  const int64_t count = rows.end - rows.begin, tiles = (count + kTile - 1) / kTile;
  const int64_t d_qk = head.q.width, d_v = head.v.width, width_qk = Padded(d_qk), width_v = Padded(d_v);
  const float scale = kLog2e / std::sqrt(static_cast<float>(d_qk));

  Range keys[kSlice];
  KeysOfRows(part, group, rows, keys);
  const Range span{keys[0].begin, keys[count - 1].end};
  if (span.empty() && merge) return;

  Scratch scratch{memory};
  float* const k = scratch.take(kSlab * width_qk);
  float* const v = scratch.take(kSlab * width_v);
  float* const s = scratch.take(kStep * kTile);
  float* const packed = scratch.take(kTile * width_qk);
  TileState states[(kSlice + kTile - 1) / kTile];
  Ahead ahead;
  const Rows earlier_o{head.o.data, DType::f32, head.o.distance, head.o.width};

  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t row = rows.begin + tile * kTile, lanes = std::min<int64_t>(kTile, rows.end - row);
    TileState& state = states[tile];
    state = {scratch.take(width_qk * kTile), scratch.take(width_v * kTile), scratch.take(kTile), scratch.take(kTile)};
    PackRows(head.q, queries, row, lanes, scale, packed);
    TransposeToLanes(packed, width_qk, state.q);
    std::memset(state.o, 0, static_cast<size_t>(width_v * kTile) * sizeof(float));
    for (int64_t lane = 0; lane < kTile; ++lane) {
      const float lse = merge && lane < lanes ? head.lse[queries.position(row + lane)] : -kInfinity;
      state.largest[lane] = lse * kLog2e;
      state.sum[lane] = lse == -kInfinity ? 0.0f : 1.0f;
    }
    if (merge) PackRows(earlier_o, queries, row, lanes, 1.0f, state.o);
  }

  for (int64_t origin = span.begin; origin < span.end; origin += kSlab) {
    const int64_t limit = std::min<int64_t>(kSlab, span.end - origin);
    PackRows(head.k, key_list, origin, limit, 1.0f, k);
    PackRows(head.v, key_list, origin, limit, 1.0f, v);
    ahead.clear();
    if (origin + kSlab < span.end) {
      const int64_t end = std::min(span.end, origin + 2 * kSlab);
      ahead.add(head.k, key_list, origin + kSlab, end);
      ahead.add(head.v, key_list, origin + kSlab, end);
    } else if (next != nullptr) {
      FetchForward(*next, ahead);
    }
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int lanes = static_cast<int>(std::min<int64_t>(kTile, count - tile * kTile));
      const TileKeys tile_keys(keys + tile * kTile, lanes, origin, limit);
      const TileState& state = states[tile];
      for (int begin = tile_keys.begin[0]; begin < tile_keys.end[kTile - 1]; begin += kStep) {
        const int end = std::min<int>(begin + kStep, tile_keys.end[kTile - 1]);
        const TileSchedule schedule(tile_keys, begin, end);
        if (schedule.empty()) continue;
        Scores(ahead, schedule, begin, k, d_qk, state.q, s);  // s = k q^T
        SkipEarlierParts(schedule, part, group, rows.begin + tile * kTile, lanes, origin, begin, s);
        for (int x = 0; x < kVectors; ++x) SoftmaxStep(tile_keys, schedule, x, begin, end, s, state, width_v);
        AddOverKeys(ahead, tile_keys, lanes, begin, end, s, v, d_v, state.o);  // o += p^T v
      }
    }
  }

  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t row = rows.begin + tile * kTile, lanes = std::min<int64_t>(kTile, rows.end - row);
    const TileState& state = states[tile];
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t i = queries.position(row + lane);
      const bool no_keys = state.largest[lane] == -kInfinity;
      head.lse[i] = no_keys ? -kInfinity : (state.largest[lane] + std::log2(state.sum[lane])) * kLn2;
      const float inverse = no_keys ? 0.0f : 1.0f / state.sum[lane];
      const float* const from = state.o + lane * width_v;
      float* const to = head.o.data + i * head.o.distance;
      int64_t c = 0;
      for (; c + kLanes <= d_v; c += kLanes) Store(hn::Mul(Set(inverse), Load(from + c)), to + c);
      for (; c < d_v; ++c) to[c] = inverse * from[c];
    }
  }
}

// --- Backward ---

/// The first of the queries `rows` for which `past` holds, which it then does for all later ones.
template <class Past>
HWY_INLINE int64_t FirstRow(Range rows, const Past& past) {
  while (rows.begin < rows.end) {
    const int64_t middle = rows.begin + (rows.end - rows.begin) / 2;
    if (past(middle))
      rows.end = middle;
    else
      rows.begin = middle + 1;
  }
  return rows.begin;
}

/// dq = 0 and delta = sum of d_o * o for the queries `rows`. o, d_o: scratch for a tile of rows.
void BeginQueries(const HeadSequence& head, Strip queries, Range rows, float* o, float* d_o) {
  const int64_t width = Padded(head.v.width);
  ClearRows(head.dq, queries, rows.begin, rows.end - rows.begin);
  for (int64_t row = rows.begin; row < rows.end; row += kTile) {
    const int64_t lanes = std::min<int64_t>(kTile, rows.end - row);
    PackRows(head.saved_o, queries, row, lanes, 1.0f, o);
    PackRows(head.d_o, queries, row, lanes, 1.0f, d_o);
    for (int64_t lane = 0; lane < lanes; ++lane) {
      V sum = hn::Zero(Floats());
      for (int64_t c = 0; c < width; c += kLanes)
        sum = hn::MulAdd(Load(o + lane * width + c), Load(d_o + lane * width + c), sum);
      head.delta[queries.position(row + lane)] = hn::GetLane(hn::SumOfLanes(Floats(), sum));
    }
  }
}

/// What the tiles of a backward block work on.
struct BackwardScratch {
  float *k, *v, *dk, *dv;  // [kSlab][d_qk or d_v]
  float *p, *ds;           // [kStep][kTile]
  float *q, *d_o, *dq;     // [kTile][d_qk or d_v]
  float *q_t, *d_o_t;      // [d_qk or d_v][kTile]
  float *lse, *delta;      // [kTile]

  BackwardScratch(float* memory, int64_t width_qk, int64_t width_v) {
    Scratch scratch{memory};
    for (float** rows : {&k, &dk}) *rows = scratch.take(kSlab * width_qk);
    for (float** rows : {&v, &dv}) *rows = scratch.take(kSlab * width_v);
    for (float** scores : {&p, &ds}) *scores = scratch.take(kStep * kTile);
    for (float** tile : {&q, &dq, &q_t}) *tile = scratch.take(kTile * width_qk);
    for (float** tile : {&d_o, &d_o_t}) *tile = scratch.take(kTile * width_v);
    for (float** lanes : {&lse, &delta}) *lanes = scratch.take(kTile);
  }
};

/// The pairs of the queries [row, row + lanes) and the packed keys [origin, origin + limit).
void BackwardTile(const HeadSequence& head, const Part& part, int64_t group, int64_t row, int64_t lanes, int64_t origin,
                  int64_t limit, const BackwardScratch& at, Ahead& ahead) {
  const Strip queries = part.view.queries(group);
  const int64_t d_qk = head.q.width, d_v = head.v.width, width_qk = Padded(d_qk), width_v = Padded(d_v);
  const float scale = 1.0f / std::sqrt(static_cast<float>(d_qk));
  const int count = static_cast<int>(lanes);

  Range keys[kTile];
  KeysOfRows(part, group, {row, row + lanes}, keys);
  const TileKeys tile_keys(keys, lanes, origin, limit);
  const int tile_begin = tile_keys.begin[0], tile_end = tile_keys.end[kTile - 1];
  if (tile_begin >= tile_end) return;

  PackRows(head.q, queries, row, lanes, scale * kLog2e, at.q);
  PackRows(head.d_o, queries, row, lanes, 1.0f, at.d_o);
  TransposeToLanes(at.q, width_qk, at.q_t);
  TransposeToLanes(at.d_o, width_v, at.d_o_t);
  std::memset(at.dq, 0, static_cast<size_t>(lanes * width_qk) * sizeof(float));
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const int64_t i = queries.position(row + lane);
    at.lse[lane] = head.lse[i] == -kInfinity ? 0.0f : head.lse[i] * kLog2e;  // without keys p is 0 in any case
    at.delta[lane] = head.delta[i];
  }

  for (int begin = tile_begin; begin < tile_end; begin += kStep) {
    const int end = std::min(begin + kStep, tile_end);
    const TileSchedule schedule(tile_keys, begin, end);
    if (schedule.empty()) continue;
    Scores(ahead, schedule, begin, at.k, d_qk, at.q_t, at.p);    // s = k q^T
    Scores(ahead, schedule, begin, at.v, d_v, at.d_o_t, at.ds);  // dp = v d_o^T
    SkipEarlierParts(schedule, part, group, row, lanes, origin, begin, at.p);
    for (int x = 0; x < kVectors; ++x) {  // p = 2^(s - lse), ds = p * (dp - delta)
      const V lse_x = Load(at.lse + x * kLanes), delta_x = Load(at.delta + x * kLanes);
      float* const px = at.p + x * kLanes - begin * kTile;
      float* const dsx = at.ds + x * kLanes - begin * kTile;
      const auto clear = [&](int from, int to) HWY_ATTR {
        for (int t = from; t < to; ++t) {
          Store(hn::Zero(Floats()), px + t * kTile);
          Store(hn::Zero(Floats()), dsx + t * kTile);
        }
      };
      const auto weigh = [&](int from, int to, bool masked) HWY_ATTR {
        for (int t = from; t < to; ++t) {
          V s = Load(px + t * kTile);
          if (masked) s = MaskedScores(s, tile_keys, x, t);
          const V weight = Exp2(hn::Sub(s, lse_x));
          Store(weight, px + t * kTile);
          Store(hn::Mul(weight, hn::Sub(Load(dsx + t * kTile), delta_x)), dsx + t * kTile);
        }
      };
      clear(begin, schedule.vector_begin[x]);
      weigh(schedule.vector_begin[x], schedule.full_begin[x], true);
      weigh(schedule.full_begin[x], schedule.full_end[x], false);
      weigh(schedule.full_end[x], schedule.vector_end[x], true);
      clear(schedule.vector_end[x], end);
    }
    AddOverQueries(ahead, tile_keys, count, begin, end, at.p, at.d_o, d_v, at.dv);  // dv += p d_o
    AddOverQueries(ahead, tile_keys, count, begin, end, at.ds, at.q, d_qk, at.dk);  // dk += ds q
    AddOverKeys(ahead, tile_keys, count, begin, end, at.ds, at.k, d_qk, at.dq);     // dq += ds^T k
  }
  AddRows(at.dq, head.dq, queries, row, lanes, scale);
}

/// What the next task reads and writes first.
void FetchBackward(const BackwardTask& next, Ahead& ahead) {
  const Strip queries = next.part->view.queries(next.group), key_list = next.part->view.keys(next.group);
  const HeadSequence& head = next.head;
  const Range span = Span(*next.part, next.group, next.rows);
  const Range rows{next.rows.begin, std::min(next.rows.end, next.rows.begin + kSlab)};
  const int64_t begin = std::max(span.begin, next.keys.begin), end = std::min({span.end, next.keys.end, begin + kSlab});
  if (next.begins.queries) ahead.add(head.saved_o, queries, rows.begin, rows.end);
  ahead.add(head.d_o, queries, rows.begin, rows.end);
  ahead.add(head.dq, queries, rows.begin, rows.end);
  ahead.add(head.k, key_list, begin, end);
  ahead.add(head.v, key_list, begin, end);
  ahead.add(head.dk, key_list, begin, end);
  ahead.add(head.dv, key_list, begin, end);
  ahead.add(head.q, queries, rows.begin, rows.end);
}

void BackwardBlock(const BackwardTask& task, const BackwardTask* next, float* memory) {
  const HeadSequence& head = task.head;
  const Part& part = *task.part;
  const int64_t group = task.group;
  const Range rows = task.rows, block = task.keys;
  const Strip queries = part.view.queries(group), key_list = part.view.keys(group);
  const BackwardScratch at(memory, Padded(head.q.width), Padded(head.v.width));
  if (task.begins.queries) BeginQueries(head, queries, rows, at.k, at.v);
  if (task.begins.keys) {
    ClearRows(head.dk, key_list, block.begin, block.end - block.begin);
    ClearRows(head.dv, key_list, block.begin, block.end - block.begin);
  }

  Ahead ahead;
  const auto keys_of = [&](int64_t row) { return part.keys_of(group, queries.position(row)); };
  const Range span = Span(part, group, rows), met{std::max(block.begin, span.begin), std::min(block.end, span.end)};
  for (int64_t origin = met.begin; origin < met.end; origin += kSlab) {
    const int64_t limit = std::min<int64_t>(kSlab, met.end - origin);
    const int64_t first = FirstRow(rows, [&](int64_t row) { return keys_of(row).end > origin; });
    const int64_t last = FirstRow(rows, [&](int64_t row) { return keys_of(row).begin >= origin + limit; });
    if (first >= last) continue;
    PackRows(head.k, key_list, origin, limit, 1.0f, at.k);
    PackRows(head.v, key_list, origin, limit, 1.0f, at.v);
    std::memset(at.dk, 0, static_cast<size_t>(limit * Padded(head.q.width)) * sizeof(float));
    std::memset(at.dv, 0, static_cast<size_t>(limit * Padded(head.v.width)) * sizeof(float));
    for (int64_t row = first; row < last; row += kTile) {
      ahead.clear();
      if (row + kTile < last) {
        const int64_t end = std::min(last, row + 2 * kTile);
        ahead.add(head.q, queries, row + kTile, end);
        ahead.add(head.d_o, queries, row + kTile, end);
        ahead.add(head.dq, queries, row + kTile, end);
      } else {
        const int64_t end = std::min(met.end, origin + 2 * kSlab);
        ahead.add(head.k, key_list, origin + kSlab, end);
        ahead.add(head.v, key_list, origin + kSlab, end);
        if (next != nullptr && origin + kSlab >= met.end) FetchBackward(*next, ahead);
      }
      BackwardTile(head, part, group, row, std::min<int64_t>(kTile, last - row), origin, limit, at, ahead);
    }
    AddRows(at.dk, head.dk, key_list, origin, limit, kLn2);  // q was scaled by scale / ln 2
    AddRows(at.dv, head.dv, key_list, origin, limit, 1.0f);
  }
}

int64_t TileScratchFloats(int64_t d_qk, int64_t d_v) {
  const int64_t width = std::max(Padded(d_qk), Padded(d_v));
  const int64_t forward = 2 * kSlab * width + kStep * kTile + kTile * width + 2 * (kSlice + kTile) * (width + 16);
  const int64_t backward = 4 * kSlab * width + 2 * kStep * kTile + 5 * kTile * width + 2 * (kTile + 16);
  return std::max(forward, backward);
}

const char* TileTarget() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace lacuna::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lacuna::cpu {

HWY_EXPORT(ForwardSlice);
HWY_EXPORT(BackwardBlock);
HWY_EXPORT(TileScratchFloats);
HWY_EXPORT(TileTarget);

const char* tile_target() { return HWY_DYNAMIC_DISPATCH(TileTarget)(); }

int64_t tile_scratch_floats(int64_t d_qk, int64_t d_v) { return HWY_DYNAMIC_DISPATCH(TileScratchFloats)(d_qk, d_v); }

void forward_slice(const ForwardTask& task, const ForwardTask* next, float* scratch) {
  HWY_DYNAMIC_DISPATCH(ForwardSlice)(task, next, scratch);
}

void backward_block(const BackwardTask& task, const BackwardTask* next, float* scratch) {
  HWY_DYNAMIC_DISPATCH(BackwardBlock)(task, next, scratch);
}

}  // namespace lacuna::cpu
#endif

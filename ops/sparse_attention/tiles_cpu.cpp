// Queries lie in the lanes: a tile of scores is S^T [key][query], so softmax statistics are vertical vector operations,
// a row of keys is broadcast from where it is stored, and only tiles of q, o, d_o and dq are ever transposed.

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
HWY_INLINE void Scores(const TileSchedule& schedule, int begin, const float* a, int64_t depth, const float* b,
                       float* s) {
  const int64_t padded = Padded(depth);
  for (int i = 0; i < schedule.count; ++i) {
    const Segment& g = schedule.segments[i];
    Product<false>(g.end - g.begin, g.last - g.first, depth, {a + g.begin * padded, padded, 1}, b + g.first * kLanes,
                   kTile, s + (g.begin - begin) * kTile + g.first * kLanes, kTile);
  }
}

/// c [depth][kTile] += a^T * s over the segments: a [key][depth] packed rows, s [key - begin][kTile].
HWY_INLINE void AddTransposedProduct(const TileSchedule& schedule, int begin, const float* a, int64_t depth,
                                     const float* s, float* c) {
  const int64_t padded = Padded(depth);
  for (int i = 0; i < schedule.count; ++i) {
    const Segment& g = schedule.segments[i];
    Product<true>(depth, g.last - g.first, g.end - g.begin, {a + g.begin * padded, 1, padded},
                  s + (g.begin - begin) * kTile + g.first * kLanes, kTile, c + g.first * kLanes, kTile);
  }
}

/// c [key][width] += s * b over the segments: s [key - begin][kTile], b [kTile][width] packed rows.
HWY_INLINE void AddKeyProduct(const TileSchedule& schedule, int begin, const float* s, const float* b, int64_t width,
                              float* c) {
  const int64_t padded = Padded(width);
  for (int i = 0; i < schedule.count; ++i) {
    const Segment& g = schedule.segments[i];
    const int64_t lane = g.first * kLanes;
    Product<true>(g.end - g.begin, padded / kLanes, (g.last - g.first) * kLanes,
                  {s + (g.begin - begin) * kTile + lane, kTile, 1}, b + lane * padded, padded, c + g.begin * padded,
                  padded);
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

/// The softmax of a tile so far: scores are in units of log 2, o^T is relative to 2^largest.
struct TileState {
  float* q;        // [d_qk][kTile], scaled
  float* o;        // [d_v][kTile]
  float* largest;  // [kTile]
  float* sum;      // [kTile]
};

/// Joins the keys of `schedule`, all in [begin, begin + kStep), to the softmax. k, v: packed rows.
HWY_INLINE void JoinKeys(const HeadSequence& head, const TileKeys& keys, const TileSchedule& schedule, const Part& part,
                         int64_t group, int64_t row, int64_t count, int64_t origin, int begin, const float* k,
                         const float* v, float* s, const TileState& state) {
  Scores(schedule, begin, k, head.d_qk, state.q, s);  // s = k q^T
  SkipEarlierParts(schedule, part, group, row, count, origin, begin, s);
  for (int x = 0; x < kVectors; ++x) {
    const int t0 = schedule.vector_begin[x], t1 = schedule.full_begin[x], t2 = schedule.full_end[x],
              t3 = schedule.vector_end[x];
    if (t0 == t3) continue;
    float* const sx = s + x * kLanes - begin * kTile;
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
    for (t = t0; t + 2 <= t3; t += 2) {  // p = 2^(s - largest)
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
    if (!hn::AllTrue(Floats(), hn::Eq(before, largest)))
      for (int64_t c = 0; c < head.d_v; ++c) {
        float* const o = state.o + c * kTile + x * kLanes;
        Store(hn::Mul(Load(o), shrink), o);
      }
  }
  AddTransposedProduct(schedule, begin, v, head.d_v, s, state.o);  // o^T += v^T p
}

void ForwardSlice(const HeadSequence& head, const Part& part, int64_t group, Range rows, bool merge, float* memory) {
  const Strip queries = part.view.queries(group), key_list = part.view.keys(group);
  const int64_t count = rows.end - rows.begin, tiles = (count + kTile - 1) / kTile;
  const int64_t width_qk = Padded(head.d_qk), width_v = Padded(head.d_v);
  const float scale = kLog2e / std::sqrt(static_cast<float>(head.d_qk));

  Range keys[kSlice];
  KeysOfRows(part, group, rows, keys);
  const Range span{keys[0].begin, keys[count - 1].end};
  if (span.empty() && merge) return;

  Scratch scratch{memory};
  float* const k = scratch.take(kChunk * width_qk);
  float* const v = scratch.take(kChunk * width_v);
  float* const s = scratch.take(kStep * kTile);
  float* const packed = scratch.take(kTile * std::max(width_qk, width_v));
  TileState states[(kSlice + kTile - 1) / kTile];

  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t row = rows.begin + tile * kTile, lanes = std::min<int64_t>(kTile, rows.end - row);
    TileState& state = states[tile];
    state = {scratch.take(width_qk * kTile), scratch.take(width_v * kTile), scratch.take(kTile), scratch.take(kTile)};
    LoadTile(head.q, head.row_qk, head.d_qk, queries, row, lanes, scale, packed, state.q);
    for (int64_t lane = 0; lane < kTile; ++lane) {
      const float lse = merge && lane < lanes ? head.lse[queries.position(row + lane)] : -kInfinity;
      state.largest[lane] = lse * kLog2e;
      state.sum[lane] = lse == -kInfinity ? 0.0f : 1.0f;
    }
    if (merge)
      LoadTile(head.o, head.row_v, head.d_v, queries, row, lanes, 1.0f, packed, state.o);
    else
      std::memset(state.o, 0, static_cast<size_t>(width_v * kTile) * sizeof(float));
  }

  for (int64_t origin = span.begin; origin < span.end; origin += kChunk) {
    const int64_t limit = std::min<int64_t>(kChunk, span.end - origin);
    PackRows(head.k, head.row_qk, head.d_qk, key_list, origin, limit, 1.0f, k);
    PackRows(head.v, head.row_v, head.d_v, key_list, origin, limit, 1.0f, v);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t lanes = std::min<int64_t>(kTile, count - tile * kTile);
      const TileKeys tile_keys(keys + tile * kTile, lanes, origin, limit);
      for (int begin = tile_keys.begin[0]; begin < tile_keys.end[kTile - 1]; begin += kStep) {
        const TileSchedule schedule(tile_keys, begin, std::min<int>(begin + kStep, tile_keys.end[kTile - 1]));
        if (!schedule.empty())
          JoinKeys(head, tile_keys, schedule, part, group, rows.begin + tile * kTile, lanes, origin, begin, k, v, s,
                   states[tile]);
      }
    }
  }

  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t row = rows.begin + tile * kTile, lanes = std::min<int64_t>(kTile, rows.end - row);
    const TileState& state = states[tile];
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const bool no_keys = state.largest[lane] == -kInfinity;
      head.lse[queries.position(row + lane)] =
          no_keys ? -kInfinity : (state.largest[lane] + std::log2(state.sum[lane])) * kLn2;
      state.sum[lane] = no_keys ? 0.0f : 1.0f / state.sum[lane];
    }
    StoreTile(state.o, head.row_v, head.d_v, state.sum, queries, row, lanes, packed, head.o);
  }
}

// --- Backward ---

void BackwardSlab(const HeadSequence& head, const Part& part, int64_t group, Range rows, Range slab, float* memory) {
  const Strip queries = part.view.queries(group), key_list = part.view.keys(group);
  const int64_t width_qk = Padded(head.d_qk), width_v = Padded(head.d_v);
  const float scale = 1.0f / std::sqrt(static_cast<float>(head.d_qk));

  const Range first = part.keys_of(group, queries.position(rows.begin));
  const Range last = part.keys_of(group, queries.position(rows.end - 1));
  const int64_t origin = std::max(first.begin, slab.begin), limit = std::min(last.end, slab.end) - origin;
  if (limit <= 0) return;

  Scratch scratch{memory};
  float* const k = scratch.take(kSlice * width_qk);
  float* const v = scratch.take(kSlice * width_v);
  float* const dk = scratch.take(kSlice * width_qk);
  float* const dv = scratch.take(kSlice * width_v);
  float* const p = scratch.take(kStep * kTile);       // [key][query]
  float* const ds = scratch.take(kStep * kTile);      // [key][query]
  float* const q = scratch.take(kTile * width_qk);    // [query][d_qk]
  float* const q_t = scratch.take(kTile * width_qk);  // [d_qk][query]
  float* const d_o = scratch.take(kTile * width_v);
  float* const d_o_t = scratch.take(kTile * width_v);
  float* const dq = scratch.take(kTile * width_qk);
  float* const dq_t = scratch.take(kTile * width_qk);
  float* const lse = scratch.take(kTile);
  float* const delta = scratch.take(kTile);
  float* const scales = scratch.take(kTile);
  std::fill(scales, scales + kTile, scale);

  PackRows(head.k, head.row_qk, head.d_qk, key_list, origin, limit, 1.0f, k);
  PackRows(head.v, head.row_v, head.d_v, key_list, origin, limit, 1.0f, v);
  std::memset(dk, 0, static_cast<size_t>(limit * width_qk) * sizeof(float));
  std::memset(dv, 0, static_cast<size_t>(limit * width_v) * sizeof(float));

  for (int64_t row = rows.begin; row < rows.end; row += kTile) {
    const int64_t lanes = std::min<int64_t>(kTile, rows.end - row);
    Range keys[kTile];
    KeysOfRows(part, group, {row, row + lanes}, keys);
    const TileKeys tile_keys(keys, lanes, origin, limit);
    const int tile_begin = tile_keys.begin[0], tile_end = tile_keys.end[kTile - 1];
    if (tile_begin >= tile_end) continue;

    std::memset(q + lanes * width_qk, 0, static_cast<size_t>((kTile - lanes) * width_qk) * sizeof(float));
    std::memset(d_o + lanes * width_v, 0, static_cast<size_t>((kTile - lanes) * width_v) * sizeof(float));
    PackRows(head.q, head.row_qk, head.d_qk, queries, row, lanes, scale * kLog2e, q);
    PackRows(head.d_o, head.row_v, head.d_v, queries, row, lanes, 1.0f, d_o);
    TransposeToLanes(q, width_qk, width_qk, 1.0f, q_t);
    TransposeToLanes(d_o, width_v, width_v, 1.0f, d_o_t);
    std::memset(dq_t, 0, static_cast<size_t>(width_qk * kTile) * sizeof(float));
    for (int64_t lane = 0; lane < kTile; ++lane) {
      lse[lane] = delta[lane] = 0.0f;
      if (lane >= lanes) continue;
      const int64_t i = queries.position(row + lane);
      if (head.lse[i] != -kInfinity) lse[lane] = head.lse[i] * kLog2e;  // without keys p is 0 whatever is subtracted
      delta[lane] = head.delta[i];
    }

    for (int begin = tile_begin; begin < tile_end; begin += kStep) {
      const TileSchedule schedule(tile_keys, begin, std::min(begin + kStep, tile_end));
      if (schedule.empty()) continue;
      Scores(schedule, begin, k, head.d_qk, q_t, p);    // s = k q^T
      Scores(schedule, begin, v, head.d_v, d_o_t, ds);  // dp = v d_o^T
      SkipEarlierParts(schedule, part, group, row, lanes, origin, begin, p);
      for (int x = 0; x < kVectors; ++x) {  // p = 2^(s - lse), ds = p * (dp - delta)
        const V lse_x = Load(lse + x * kLanes), delta_x = Load(delta + x * kLanes);
        const auto weigh = [&](int from, int to, bool masked) HWY_ATTR {
          for (int t = from; t < to; ++t) {
            float* const pt = p + (t - begin) * kTile + x * kLanes;
            float* const dst = ds + (t - begin) * kTile + x * kLanes;
            V s = Load(pt);
            if (masked) s = MaskedScores(s, tile_keys, x, t);
            const V weight = Exp2(hn::Sub(s, lse_x));
            Store(weight, pt);
            Store(hn::Mul(weight, hn::Sub(Load(dst), delta_x)), dst);
          }
        };
        weigh(schedule.vector_begin[x], schedule.full_begin[x], true);
        weigh(schedule.full_begin[x], schedule.full_end[x], false);
        weigh(schedule.full_end[x], schedule.vector_end[x], true);
      }
      AddKeyProduct(schedule, begin, p, d_o, head.d_v, dv);           // dv += p d_o
      AddKeyProduct(schedule, begin, ds, q, head.d_qk, dk);           // dk += ds q
      AddTransposedProduct(schedule, begin, k, head.d_qk, ds, dq_t);  // dq^T += k^T ds
    }
    TransposeFromLanes(dq_t, width_qk, scales, dq, width_qk);
    AddRows(dq, head.row_qk, head.d_qk, queries, row, lanes, 1.0f, head.dq);
  }
  AddRows(dk, head.row_qk, head.d_qk, key_list, origin, limit, kLn2, head.dk);  // q was scaled by scale / ln 2
  AddRows(dv, head.row_v, head.d_v, key_list, origin, limit, 1.0f, head.dv);
}

int64_t TileScratchFloats(int64_t d_qk, int64_t d_v) {
  const int64_t width = std::max(Padded(d_qk), Padded(d_v));
  const int64_t forward = 2 * kChunk * width + kStep * kTile + kTile * width + 2 * (kSlice + kTile) * (width + 16);
  const int64_t backward = 4 * kSlice * width + 2 * kStep * kTile + 6 * kTile * width + 3 * (kTile + 16);
  return std::max(forward, backward);
}

const char* TileTarget() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace lacuna::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lacuna::cpu {

HWY_EXPORT(ForwardSlice);
HWY_EXPORT(BackwardSlab);
HWY_EXPORT(TileScratchFloats);
HWY_EXPORT(TileTarget);

const char* tile_target() { return HWY_DYNAMIC_DISPATCH(TileTarget)(); }

int64_t tile_scratch_floats(int64_t d_qk, int64_t d_v) { return HWY_DYNAMIC_DISPATCH(TileScratchFloats)(d_qk, d_v); }

void forward_slice(const HeadSequence& head, const Part& part, int64_t group, Range rows, bool merge, float* scratch) {
  HWY_DYNAMIC_DISPATCH(ForwardSlice)(head, part, group, rows, merge, scratch);
}

void backward_slab(const HeadSequence& head, const Part& part, int64_t group, Range rows, Range keys, float* scratch) {
  HWY_DYNAMIC_DISPATCH(BackwardSlab)(head, part, group, rows, keys, scratch);
}

}  // namespace lacuna::cpu
#endif

// The forward pass of a slice of queries. Compiled once for each instruction set (Highway's foreach_target).
#if defined(LACUNA_OPS_SPARSE_ATTENTION_FORWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LACUNA_OPS_SPARSE_ATTENTION_FORWARD_INL_H_
#undef LACUNA_OPS_SPARSE_ATTENTION_FORWARD_INL_H_
#else
#define LACUNA_OPS_SPARSE_ATTENTION_FORWARD_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "ops/sparse_attention/gathered-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lacuna::cpu::HWY_NAMESPACE {

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
      const V masked = hn::IfThenElse(InRun(keys, x, t), Load(sx + t * kTile), Set(-kInfinity));
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

/// What the next task reads and writes first.
void FetchForward(const ForwardTask& next, Ahead& ahead) {
  const Strip queries = next.part->view.queries(next.group), key_list = next.part->view.keys(next.group);
  const Range span = Span(*next.part, next.group, next.rows);
  const int64_t end = std::min(span.end, span.begin + kSlab);
  ahead.add(next.head.q, queries, next.rows.begin, next.rows.end, next.heads);
  ahead.add(next.head.k, key_list, span.begin, end, next.heads);
  ahead.add(next.head.v, key_list, span.begin, end, next.heads);
  ahead.add(next.head.o, queries, next.rows.begin, next.rows.end, next.heads);
}

/// One head of a task; `places` says where its rows lie.
void ForwardHead(const ForwardTask& task, const HeadSequence& head, const Places& places, const ForwardTask* next,
                 Ahead& ahead, float* memory) {
  const Part& part = *task.part;
  const int64_t group = task.group;
  const Range rows = task.rows;
  const bool merge = task.merge;
  const auto& [queries, key_list] = places;
  const int64_t count = rows.end - rows.begin, tiles = (count + kTile - 1) / kTile;
  const int64_t d_qk = head.q.width, d_v = head.v.width, width_qk = Padded(d_qk), width_v = Padded(d_v);

  Range keys[kSlice];
  KeysOfRows(part, group, rows, keys);
  const Range span{keys[0].begin, keys[count - 1].end};
  if (span.empty() && merge) return;

  Scratch scratch{memory};
  float* const packed_k = scratch.take(kSlab * width_qk);
  float* const packed_v = scratch.take(kSlab * width_v);
  float* const s = scratch.take(kStep * kTile);
  float* const packed = scratch.take(kTile * width_qk);
  TileState states[(kSlice + kTile - 1) / kTile];
  const Rows earlier_o{head.o.data, DType::f32, head.o.distance, head.o.width};

  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t row = rows.begin + tile * kTile, lanes = std::min<int64_t>(kTile, rows.end - row);
    TileState& state = states[tile];
    state = {scratch.take(width_qk * kTile), scratch.take(width_v * kTile), scratch.take(kTile), scratch.take(kTile)};
    TransposeToLanes(PackedRows(head.q, {queries, row, lanes}, ScaleOfQueries(d_qk), packed).rows, width_qk, lanes,
                     state.q);
    std::memset(state.o, 0, static_cast<size_t>(width_v * lanes) * sizeof(float));
    for (int64_t lane = 0; lane < kTile; ++lane) {
      const float lse = merge && lane < lanes ? head.lse[queries.position(row + lane)] : -kInfinity;
      state.largest[lane] = lse * kLog2e;
      state.sum[lane] = lse == -kInfinity ? 0.0f : 1.0f;
    }
    if (merge) PackRows(earlier_o, {queries, row, lanes}, 1.0f, state.o);
  }

  for (int64_t origin = span.begin; origin < span.end; origin += kSlab) {
    const int64_t limit = std::min<int64_t>(kSlab, span.end - origin);
    const float* const k = PackedRows(head.k, {key_list, origin, limit}, 1.0f, packed_k).rows;
    const auto [v, finite_v] = PackedRows(head.v, {key_list, origin, limit}, 1.0f, packed_v);
    if (!head.k.packed) {
      ahead.clear();
      if (origin + kSlab < span.end) {
        const int64_t end = std::min(span.end, origin + 2 * kSlab);
        ahead.add(head.k, key_list, origin + kSlab, end);
        ahead.add(head.v, key_list, origin + kSlab, end);
      } else if (next != nullptr) {
        FetchForward(*next, ahead);
      }
    }
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int lanes = static_cast<int>(std::min<int64_t>(kTile, count - tile * kTile));
      const TileKeys tile_keys(keys + tile * kTile, lanes, origin, limit);
      const TileState& state = states[tile];
      for (int begin = tile_keys.begin[0]; begin < tile_keys.end[kTile - 1]; begin += kStep) {
        const int end = std::min<int>(begin + kStep, tile_keys.end[kTile - 1]);
        const TileSchedule schedule(tile_keys, lanes, begin, end);
        if (schedule.empty()) continue;
        Scores(ahead, schedule, begin, k, d_qk, state.q, s);  // s = k q^T
        SkipEarlierParts(schedule, part, group, rows.begin + tile * kTile, lanes, origin, begin, s);
        for (int x = 0; x < schedule.vectors; ++x) SoftmaxStep(tile_keys, schedule, x, begin, end, s, state, width_v);
        AddOverKeys(ahead, tile_keys, lanes, begin, end, s, v, finite_v, d_v, state.o);  // o += p^T v
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

/// Several heads: their rows are gathered and put back together.
void ForwardHeads(const ForwardTask& task, const ForwardTask* next, Ahead& ahead, float* memory) {
  const HeadSequence& head = task.head;
  const Places places(*task.part, task.group);
  const int64_t heads = task.heads;
  const Block queries{places.queries, 0, task.rows.end, heads}, keys{places.keys, 0, places.keys.rank(head.n), heads};
  Scratch scratch{memory};
  const Gathered q = Gather(head.q, queries, ScaleOfQueries(head.q.width), scratch);
  const Gathered k = Gather(head.k, keys, 1.0f, scratch), v = Gather(head.v, keys, 1.0f, scratch);
  const Gathered o = Ungathered(head.o.width, queries, scratch);
  float* const lse = scratch.take(heads * queries.count);
  if (task.merge) {
    PackRows({head.o.data, DType::f32, head.o.distance, head.o.width}, queries, 1.0f, o.data);
    GatherNumbers(head.lse, head.n, queries, lse);
  }
  if (next != nullptr) FetchForward(*next, ahead);
  for (int64_t h = 0; h < heads; ++h) {
    HeadSequence gathered = head;
    gathered.q = q.head(h);
    gathered.k = k.head(h);
    gathered.v = v.head(h);
    gathered.o = o.result(h);
    gathered.lse = lse + h * queries.count;
    ForwardHead(task, gathered, Places(), nullptr, ahead, scratch.next);
  }
  UnpackRows<false>(o.data, 1.0f, head.o, queries);
  ScatterNumbers(lse, head.n, queries, head.lse);
}

void ForwardSlice(const ForwardTask& task, const ForwardTask* next, float* memory) {
  Ahead ahead;
  if (task.heads > 1)
    ForwardHeads(task, next, ahead, memory);
  else
    ForwardHead(task, task.head, Places(*task.part, task.group), next, ahead, memory);
}

}  // namespace lacuna::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LACUNA_OPS_SPARSE_ATTENTION_FORWARD_INL_H_

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

#include "ops/sparse_attention/schedule-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lacuna::cpu {
namespace HWY_NAMESPACE {

/// Where the queries and the keys of a group lie.
struct Places {
  Strip queries, keys;
  Places() = default;  // one after the other, gathered in scratch
  Places(const Part& part, int64_t group) : queries(part.view.queries(group)), keys(part.view.keys(group)) {}
};

/// Rows of several heads, gathered in scratch.
struct Gathered {
  float* data;
  int64_t count, width;
  bool finite;

  Rows head(int64_t h) const { return {result(h).data, DType::f32, Padded(width), width, true, finite}; }
  ResultRows result(int64_t h) const { return {data + h * count * Padded(width), Padded(width), width, true}; }
};

Gathered Gather(const Rows& rows, const Block& block, float scale, Scratch& scratch) {
  float* const data = scratch.take(block.heads * block.count * Padded(rows.width));
  const bool finite = PackRows(rows, block, scale, data);
  return {data, block.count, rows.width, finite};
}

Gathered Ungathered(int64_t width, const Block& block, Scratch& scratch) {
  return {scratch.take(block.heads * block.count * Padded(width)), block.count, width, true};
}

/// Scores are in units of log 2: what q is multiplied by.
HWY_INLINE float ScaleOfQueries(int64_t d_qk) { return kLog2e / std::sqrt(static_cast<float>(d_qk)); }
/// What their gradient is multiplied by, k and ds being in units of 1.
HWY_INLINE float ScaleOfDq(int64_t d_qk) { return 1.0f / std::sqrt(static_cast<float>(d_qk)); }

/// to [heads][count] = the numbers of the block's positions, in each head's [n].
void GatherNumbers(const float* from, int64_t n, const Block& block, float* to) {
  for (int64_t h = 0; h < block.heads; ++h)
    for (int64_t t = 0; t < block.count; ++t) *to++ = from[h * n + block.strip.position(block.begin + t)];
}

void ScatterNumbers(const float* from, int64_t n, const Block& block, float* to) {
  for (int64_t h = 0; h < block.heads; ++h)
    for (int64_t t = 0; t < block.count; ++t) to[h * n + block.strip.position(block.begin + t)] = *from++;
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

/// One head of a task; `places` says where its rows lie.
void ForwardHead(const ForwardTask& task, const HeadSequence& head, const Places& places, const ForwardTask* next,
                 float* memory) {
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
  Ahead ahead;
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
void ForwardHeads(const ForwardTask& task, float* memory) {
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
  for (int64_t h = 0; h < heads; ++h) {
    HeadSequence gathered = head;
    gathered.q = q.head(h);
    gathered.k = k.head(h);
    gathered.v = v.head(h);
    gathered.o = o.result(h);
    gathered.lse = lse + h * queries.count;
    ForwardHead(task, gathered, Places(), nullptr, scratch.next);
  }
  UnpackRows<false>(o.data, 1.0f, head.o, queries);
  ScatterNumbers(lse, head.n, queries, head.lse);
}

void ForwardSlice(const ForwardTask& task, const ForwardTask* next, float* memory) {
  if (task.heads > 1)
    ForwardHeads(task, memory);
  else
    ForwardHead(task, task.head, Places(*task.part, task.group), next, memory);
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

/// delta = sum over d_v of d_o * o, packed rows, for the queries [row, row + lanes).
void Deltas(const float* d_o, const float* o, int64_t width, Strip queries, int64_t row, int64_t lanes, float* delta) {
  for (int64_t lane = 0; lane < lanes; ++lane) {
    V sum = hn::Zero(Floats());
    for (int64_t c = 0; c < width; c += kLanes)
      sum = hn::MulAdd(Load(o + lane * width + c), Load(d_o + lane * width + c), sum);
    delta[queries.position(row + lane)] = hn::GetLane(hn::SumOfLanes(Floats(), sum));
  }
}

/// dq = 0 and delta for the queries `rows`. o, d_o: scratch for a tile of rows.
void BeginQueries(const HeadSequence& head, Strip queries, Range rows, float* o, float* d_o) {
  ClearRows(head.dq, {queries, rows.begin, rows.end - rows.begin});
  for (int64_t row = rows.begin; row < rows.end; row += kTile) {
    const int64_t lanes = std::min<int64_t>(kTile, rows.end - row);
    PackRows(head.saved_o, {queries, row, lanes}, 1.0f, o);
    PackRows(head.d_o, {queries, row, lanes}, 1.0f, d_o);
    Deltas(d_o, o, Padded(head.v.width), queries, row, lanes, head.delta);
  }
}

/// What the tiles of a backward block work on.
struct BackwardScratch {
  float *k, *v, *dk, *dv;  // [kSlab][d_qk or d_v]
  float *p, *ds;           // [kStep][kTile]
  float *q, *d_o, *dq;     // [kTile][d_qk or d_v]
  float *q_t, *d_o_t, *o;  // [d_qk or d_v][kTile], [kTile][d_v]
  float *lse, *delta;      // [kTile]

  BackwardScratch(float* memory, int64_t width_qk, int64_t width_v) {
    Scratch scratch{memory};
    for (float** rows : {&k, &dk}) *rows = scratch.take(kSlab * width_qk);
    for (float** rows : {&v, &dv}) *rows = scratch.take(kSlab * width_v);
    for (float** scores : {&p, &ds}) *scores = scratch.take(kStep * kTile);
    for (float** tile : {&q, &dq, &q_t}) *tile = scratch.take(kTile * width_qk);
    for (float** tile : {&d_o, &d_o_t, &o}) *tile = scratch.take(kTile * width_v);
    for (float** lanes : {&lse, &delta}) *lanes = scratch.take(kTile);
  }
};

/// The keys [origin, origin + limit), packed.
struct Slab {
  int64_t origin, limit;
  Packed k, v;
  float *dk, *dv;
};

/// The pairs of the queries [row, row + lanes) and the keys of the slab. `begins`: these pairs are the first and the
/// last of the queries, whose dq and delta are written.
void BackwardTile(const BackwardTask& task, const HeadSequence& head, Strip queries, int64_t row, int64_t lanes,
                  const Slab& slab, bool begins, const BackwardScratch& at, Ahead& ahead) {
  const Part& part = *task.part;
  const int64_t group = task.group, origin = slab.origin;
  const int64_t d_qk = head.q.width, d_v = head.v.width, width_qk = Padded(d_qk), width_v = Padded(d_v);
  const int count = static_cast<int>(lanes);
  const Block rows{queries, row, lanes};

  Range keys[kTile];
  KeysOfRows(part, group, {row, row + lanes}, keys);
  const TileKeys tile_keys(keys, lanes, origin, slab.limit);
  const int tile_begin = tile_keys.begin[0], tile_end = tile_keys.end[kTile - 1];
  if (tile_begin >= tile_end && !begins) return;

  const Packed q = PackedRows(head.q, rows, ScaleOfQueries(d_qk), at.q), d_o = PackedRows(head.d_o, rows, 1.0f, at.d_o);
  if (begins)
    Deltas(d_o.rows, PackedRows(head.saved_o, rows, 1.0f, at.o).rows, width_v, queries, row, lanes, head.delta);
  TransposeToLanes(q.rows, width_qk, lanes, at.q_t);
  TransposeToLanes(d_o.rows, width_v, lanes, at.d_o_t);
  float* const dq = head.dq.packed ? head.dq.data + row * width_qk : at.dq;
  std::memset(dq, 0, static_cast<size_t>(lanes * width_qk) * sizeof(float));
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const int64_t i = queries.position(row + lane);
    at.lse[lane] = head.lse[i] == -kInfinity ? 0.0f : head.lse[i] * kLog2e;  // without keys p is 0 in any case
    at.delta[lane] = head.delta[i];
  }

  for (int begin = tile_begin; begin < tile_end; begin += kStep) {
    const int end = std::min(begin + kStep, tile_end);
    const TileSchedule schedule(tile_keys, count, begin, end);
    if (schedule.empty()) continue;
    Scores(ahead, schedule, begin, slab.k.rows, d_qk, at.q_t, at.p);    // s = k q^T
    Scores(ahead, schedule, begin, slab.v.rows, d_v, at.d_o_t, at.ds);  // dp = v d_o^T
    SkipEarlierParts(schedule, part, group, row, lanes, origin, begin, at.p);
    for (int x = 0; x < schedule.vectors; ++x) {  // p = 2^(s - lse), ds = p * (dp - delta)
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
          V weight = Exp2(hn::Sub(Load(px + t * kTile), lse_x));
          V ds = hn::Mul(weight, hn::Sub(Load(dsx + t * kTile), delta_x));
          if (masked) {
            const auto in_run = InRun(tile_keys, x, t);
            weight = hn::IfThenElseZero(in_run, weight);
            ds = hn::IfThenElseZero(in_run, ds);
          }
          Store(weight, px + t * kTile);
          Store(ds, dsx + t * kTile);
        }
      };
      clear(begin, schedule.vector_begin[x]);
      weigh(schedule.vector_begin[x], schedule.full_begin[x], true);
      weigh(schedule.full_begin[x], schedule.full_end[x], false);
      weigh(schedule.full_end[x], schedule.vector_end[x], true);
      clear(schedule.vector_end[x], end);
    }
    AddOverQueries(ahead, tile_keys, count, begin, end, at.p, d_o.rows, d_o.finite, d_v, slab.dv);  // dv += p d_o
    AddOverQueries(ahead, tile_keys, count, begin, end, at.ds, q.rows, q.finite, d_qk, slab.dk);    // dk += ds q
    AddOverKeys(ahead, tile_keys, count, begin, end, at.ds, slab.k.rows, slab.k.finite, d_qk, dq);  // dq += ds^T k
  }
  if (!head.dq.packed) (begins ? UnpackRows<false> : UnpackRows<true>)(dq, ScaleOfDq(d_qk), head.dq, rows);
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

/// One head of a task; `places` says where its rows lie.
void BackwardHead(const BackwardTask& task, const HeadSequence& head, const Places& places, const BackwardTask* next,
                  float* memory) {
  const Part& part = *task.part;
  const int64_t group = task.group;
  const Range rows = task.rows, block = task.keys;
  const auto& [queries, key_list] = places;
  const Strip query_positions = part.view.queries(group);
  const BackwardScratch at(memory, Padded(head.q.width), Padded(head.v.width));
  const Range span = Span(part, group, rows), met{std::max(block.begin, span.begin), std::min(block.end, span.end)};
  const int64_t met_count = met.end - met.begin;
  const bool once = 0 < met_count && met_count <= kSlab;  // then nothing is read that was only just cleared
  if (task.begins.queries && !once) BeginQueries(head, queries, rows, at.k, at.v);
  if (task.begins.keys)
    for (const ResultRows* sums : {&head.dk, &head.dv}) {
      ClearRows(*sums, {key_list, block.begin, (once ? met.begin : block.end) - block.begin});
      if (once) ClearRows(*sums, {key_list, met.end, block.end - met.end});
    }

  Ahead ahead;
  const auto keys_of = [&](int64_t row) { return part.keys_of(group, query_positions.position(row)); };
  const bool begin_queries = task.begins.queries && once, begin_keys = task.begins.keys && once;
  for (int64_t origin = met.begin; origin < met.end; origin += kSlab) {
    const int64_t limit = std::min<int64_t>(kSlab, met.end - origin);
    int64_t first = rows.begin, last = rows.end;
    if (!begin_queries) {
      first = FirstRow(rows, [&](int64_t row) { return keys_of(row).end > origin; });
      last = FirstRow(rows, [&](int64_t row) { return keys_of(row).begin >= origin + limit; });
    }
    if (first >= last && !begin_keys) continue;
    const Block keys{key_list, origin, limit};
    const int64_t width_qk = Padded(head.q.width), width_v = Padded(head.v.width);
    const Slab slab{origin,
                    limit,
                    PackedRows(head.k, keys, 1.0f, at.k),
                    PackedRows(head.v, keys, 1.0f, at.v),
                    head.dk.packed ? head.dk.data + origin * width_qk : at.dk,
                    head.dv.packed ? head.dv.data + origin * width_v : at.dv};
    std::memset(slab.dk, 0, static_cast<size_t>(limit * width_qk) * sizeof(float));
    std::memset(slab.dv, 0, static_cast<size_t>(limit * width_v) * sizeof(float));
    for (int64_t row = first; row < last; row += kTile) {
      ahead.clear();
      if (row + kTile < last) {
        const int64_t end = std::min(last, row + 2 * kTile);
        ahead.add(head.q, queries, row + kTile, end);
        ahead.add(head.d_o, queries, row + kTile, end);
        ahead.add(head.dq, queries, row + kTile, end);
        if (begin_queries) ahead.add(head.saved_o, queries, row + kTile, end);
      } else {
        const int64_t end = std::min(met.end, origin + 2 * kSlab);
        ahead.add(head.k, key_list, origin + kSlab, end);
        ahead.add(head.v, key_list, origin + kSlab, end);
        if (next != nullptr && origin + kSlab >= met.end) FetchBackward(*next, ahead);
      }
      BackwardTile(task, head, queries, row, std::min<int64_t>(kTile, last - row), slab, begin_queries, at, ahead);
    }
    const auto unpack = begin_keys ? UnpackRows<false> : UnpackRows<true>;
    if (!head.dk.packed) unpack(slab.dk, kLn2, head.dk, keys);  // q was in units of log 2
    if (!head.dv.packed) unpack(slab.dv, 1.0f, head.dv, keys);
  }
}

/// Several heads: their rows are gathered and put back together.
void BackwardHeads(const BackwardTask& task, float* memory) {
  const HeadSequence& head = task.head;
  const Places places(*task.part, task.group);
  const int64_t heads = task.heads;
  const Block queries{places.queries, 0, task.rows.end, heads}, keys{places.keys, 0, task.keys.end, heads};
  Scratch scratch{memory};
  const Gathered q = Gather(head.q, queries, ScaleOfQueries(head.q.width), scratch);
  const Gathered k = Gather(head.k, keys, 1.0f, scratch), v = Gather(head.v, keys, 1.0f, scratch);
  const Gathered o = Gather(head.saved_o, queries, 1.0f, scratch), d_o = Gather(head.d_o, queries, 1.0f, scratch);
  const Gathered dq = Ungathered(head.q.width, queries, scratch);
  const Gathered dk = Ungathered(head.k.width, keys, scratch), dv = Ungathered(head.v.width, keys, scratch);
  float *const lse = scratch.take(heads * queries.count), *const delta = scratch.take(heads * queries.count);
  GatherNumbers(head.lse, head.n, queries, lse);
  BackwardTask gathered_task = task;
  gathered_task.begins = {true, true};
  for (int64_t h = 0; h < heads; ++h)
    BackwardHead(gathered_task,
                 {head.n,
                  q.head(h),
                  k.head(h),
                  v.head(h),
                  lse + h * queries.count,
                  {},
                  o.head(h),
                  d_o.head(h),
                  delta + h * queries.count,
                  dq.result(h),
                  dk.result(h),
                  dv.result(h)},
                 Places(), nullptr, scratch.next);
  if (task.begins.queries) ScatterNumbers(delta, head.n, queries, head.delta);
  (task.begins.queries ? UnpackRows<false> : UnpackRows<true>)(dq.data, ScaleOfDq(head.q.width), head.dq, queries);
  (task.begins.keys ? UnpackRows<false> : UnpackRows<true>)(dk.data, kLn2, head.dk, keys);
  (task.begins.keys ? UnpackRows<false> : UnpackRows<true>)(dv.data, 1.0f, head.dv, keys);
}

void BackwardBlock(const BackwardTask& task, const BackwardTask* next, float* memory) {
  if (task.heads > 1)
    BackwardHeads(task, memory);
  else
    BackwardHead(task, task.head, Places(*task.part, task.group), next, memory);
}

int64_t TileScratchFloats(int64_t d_qk, int64_t d_v) {
  const int64_t width = std::max(Padded(d_qk), Padded(d_v));
  const int64_t forward = 2 * kSlab * width + kStep * kTile + kTile * width + 2 * (kSlice + kTile) * (width + 16);
  const int64_t backward = 4 * kSlab * width + 2 * kStep * kTile + 6 * kTile * width + 2 * (kTile + 16);
  const int64_t gathered = 8 * kGathered * width + 2 * (kGathered + 16);
  return std::max(forward, backward) + gathered;
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

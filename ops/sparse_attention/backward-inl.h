// The backward pass of a slice of queries and a slab of keys. Compiled once for each instruction set (Highway's
// foreach_target).
#if defined(LACUNA_OPS_SPARSE_ATTENTION_BACKWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LACUNA_OPS_SPARSE_ATTENTION_BACKWARD_INL_H_
#undef LACUNA_OPS_SPARSE_ATTENTION_BACKWARD_INL_H_
#else
#define LACUNA_OPS_SPARSE_ATTENTION_BACKWARD_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "ops/sparse_attention/gathered-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lacuna::cpu::HWY_NAMESPACE {

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
  if (next.begins.queries) ahead.add(head.saved_o, queries, rows.begin, rows.end, next.heads);
  ahead.add(head.d_o, queries, rows.begin, rows.end, next.heads);
  ahead.add(head.dq, queries, rows.begin, rows.end, next.heads);
  ahead.add(head.k, key_list, begin, end, next.heads);
  ahead.add(head.v, key_list, begin, end, next.heads);
  ahead.add(head.dk, key_list, begin, end, next.heads);
  ahead.add(head.dv, key_list, begin, end, next.heads);
  ahead.add(head.q, queries, rows.begin, rows.end, next.heads);
}

/// One head of a task; `places` says where its rows lie.
void BackwardHead(const BackwardTask& task, const HeadSequence& head, const Places& places, const BackwardTask* next,
                  Ahead& ahead, float* memory) {
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
      if (!head.q.packed) {
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
      }
      BackwardTile(task, head, queries, row, std::min<int64_t>(kTile, last - row), slab, begin_queries, at, ahead);
    }
    const auto unpack = begin_keys ? UnpackRows<false> : UnpackRows<true>;
    if (!head.dk.packed) unpack(slab.dk, kLn2, head.dk, keys);  // q was in units of log 2
    if (!head.dv.packed) unpack(slab.dv, 1.0f, head.dv, keys);
  }
}

/// Several heads: their rows are gathered and put back together.
void BackwardHeads(const BackwardTask& task, const BackwardTask* next, Ahead& ahead, float* memory) {
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
  if (next != nullptr) FetchBackward(*next, ahead);
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
                 Places(), nullptr, ahead, scratch.next);
  if (task.begins.queries) ScatterNumbers(delta, head.n, queries, head.delta);
  (task.begins.queries ? UnpackRows<false> : UnpackRows<true>)(dq.data, ScaleOfDq(head.q.width), head.dq, queries);
  (task.begins.keys ? UnpackRows<false> : UnpackRows<true>)(dk.data, kLn2, head.dk, keys);
  (task.begins.keys ? UnpackRows<false> : UnpackRows<true>)(dv.data, 1.0f, head.dv, keys);
}

void BackwardBlock(const BackwardTask& task, const BackwardTask* next, float* memory) {
  Ahead ahead;
  if (task.heads > 1)
    BackwardHeads(task, next, ahead, memory);
  else
    BackwardHead(task, task.head, Places(*task.part, task.group), next, ahead, memory);
}

}  // namespace lacuna::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LACUNA_OPS_SPARSE_ATTENTION_BACKWARD_INL_H_

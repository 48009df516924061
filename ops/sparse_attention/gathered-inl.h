// Where the rows of a task lie: in their tensors, or gathered in scratch for several heads at once. Compiled once for
// each instruction set (Highway's foreach_target).
#if defined(LACUNA_OPS_SPARSE_ATTENTION_GATHERED_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LACUNA_OPS_SPARSE_ATTENTION_GATHERED_INL_H_
#undef LACUNA_OPS_SPARSE_ATTENTION_GATHERED_INL_H_
#else
#define LACUNA_OPS_SPARSE_ATTENTION_GATHERED_INL_H_
#endif

#include <cmath>

#include "ops/sparse_attention/schedule-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lacuna::cpu::HWY_NAMESPACE {

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

/// Keys [begin, end) that some of the queries meet.
HWY_INLINE Range Span(const Part& part, int64_t group, Range rows) {
  const Strip queries = part.view.queries(group);
  return {part.keys_of(group, queries.position(rows.begin)).begin,
          part.keys_of(group, queries.position(rows.end - 1)).end};
}

}  // namespace lacuna::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LACUNA_OPS_SPARSE_ATTENTION_GATHERED_INL_H_

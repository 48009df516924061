#pragma once
// Backward of parts whose queries all meet the same few keys: in chunks of queries, so that they run at once.

#include <algorithm>
#include <vector>

#include "ops/sparse_attention/kernels.h"
#include "ops/sparse_attention/rows_cpu.h"
#include "ops/sparse_attention/slicing_cpu.h"

namespace lacuna::cpu {

/// Sums for dk and dv from position 0 on: row j of a head is at dk + j * row_qk, dv + j * row_v.
template <class T>
struct KeySums {
  T *dk, *dv;
  int64_t row_qk, row_v;
};

/// A slice of queries, a slab of keys, and whether this is the first time that they are met.
template <class T>
struct Block {
  int64_t b, h, heads;
  const Part* part;
  int64_t group;
  Range rows, keys;
  bool first;       // queries, and keys unless `sums` are of a chunk
  KeySums<T> sums;  // of head h
};

/// dk and dv of head h of batch entry b.
template <class T>
KeySums<T> sums_of_head(const AttentionProblem& problem, const AttentionGrads& grads, int64_t b, int64_t h) {
  const int64_t row_qk = grads.dk.row_distance(), row_v = grads.dv.row_distance();
  return {grads.dk.data<T>() + b * problem.n * row_qk + h * problem.d_qk,
          grads.dv.data<T>() + b * problem.n * row_v + h * problem.d_v, row_qk, row_v};
}

/// Where all queries meet the same few keys, slabs leave nothing to do at once. Such a part is cut into so many chunks
/// of queries, which have sums of their own; 0: it is not. A fact of the part and n alone.
inline int64_t chunks_of(const Slicing& slicing) {
  constexpr int64_t kMostChunks = 16;
  if (slicing.part == nullptr || !slicing.part->view.prefix() || slicing.part->view.key_end >= slicing.n) return 0;
  const int64_t key_end = slicing.part->view.key_end;
  const int64_t chunks = std::min({kMostChunks, slicing.slices(), slicing.n / key_end});
  return chunks > 1 && chunks * slicing.rows > key_end ? chunks : 0;  // more than there are slabs
}

/// Runs the parts in `heads` that are cut into chunks, and takes them out of it.
template <class T, class Task>
void take_chunked_parts(const AttentionProblem& problem, std::vector<Slicing>& heads, bool first,
                        const AttentionGrads& grads, const Task& task) {
  std::vector<int64_t> chunks_of_head;
  int64_t most_chunks = 0, most_keys = 0;
  for (const Slicing& slicing : heads) {
    const int64_t chunks = chunks_of_head.emplace_back(chunks_of(slicing));
    most_chunks = std::max(most_chunks, chunks);
    if (chunks > 0) most_keys = std::max(most_keys, slicing.part->view.key_end);
  }
  if (most_chunks == 0) return;

  const MemoryScope scope(MemoryCategory::workspace);
  const int64_t sequences = problem.batch * problem.n_heads;
  const Tensor dk = zeros({sequences * most_chunks, most_keys, problem.d_qk}, dtype_of<T>),
               dv = zeros({sequences * most_chunks, most_keys, problem.d_v}, dtype_of<T>);
  const auto sums_of_chunk = [&](int64_t index) {
    return KeySums<T>{dk.data<T>() + index * most_keys * problem.d_qk, dv.data<T>() + index * most_keys * problem.d_v,
                      problem.d_qk, problem.d_v};
  };
#pragma omp parallel for schedule(dynamic)
  for (int64_t index = 0; index < sequences * most_chunks; ++index) {
    const int64_t h = index / most_chunks % problem.n_heads, c = index % most_chunks;
    const int64_t chunks = chunks_of_head[static_cast<size_t>(h)];
    if (c >= chunks) continue;
    const Slicing& slicing = heads[static_cast<size_t>(h)];
    const int64_t slices = slicing.slices();
    for (int64_t s = c * slices / chunks; s < (c + 1) * slices / chunks; ++s)
      task(Block<T>{index / most_chunks / problem.n_heads,
                    h,
                    1,
                    slicing.part,
                    0,
                    slicing.slice(0, s),
                    {0, slicing.part->view.key_end},
                    first,
                    sums_of_chunk(index)},
           nullptr);
  }
#pragma omp parallel for schedule(static)
  for (int64_t index = 0; index < sequences * most_keys; ++index) {
    const int64_t sequence = index / most_keys, j = index % most_keys, h = sequence % problem.n_heads;
    const KeySums<T> to = sums_of_head<T>(problem, grads, sequence / problem.n_heads, h);
    for (int64_t c = 0; c < chunks_of_head[static_cast<size_t>(h)]; ++c) {
      const KeySums<T> from = sums_of_chunk(sequence * most_chunks + c);
      axpy(T{1}, from.dk + j * from.row_qk, to.dk + j * to.row_qk, problem.d_qk);
      axpy(T{1}, from.dv + j * from.row_v, to.dv + j * to.row_v, problem.d_v);
    }
  }
  for (size_t h = 0; h < heads.size(); ++h)
    if (chunks_of_head[h] > 0) heads[h].part = nullptr;
}

}  // namespace lacuna::cpu

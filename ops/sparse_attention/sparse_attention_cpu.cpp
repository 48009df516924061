// Attention on the CPU: how the work of a call is cut into tasks. f32 runs the tiles of tiles_cpu.cpp, f64 runs row by
// row.
//
// The queries of a group are cut into slices. In forward a slice is a task. In backward a task is a slice and a slab of
// keys: slab s holds the keys between the first positions of slices s and s + 1, so a slice meets only its own slab and
// earlier ones. Phase p runs all pairs (slice s, slab s - p) at once: no two tasks of a phase write the same row of dq,
// dk or dv, so the sums need neither atomics nor copies, and their order does not depend on the threads.

#include <omp.h>

#include <algorithm>

#include "core/allocator.h"
#include "ops/sparse_attention/kernels.h"
#include "ops/sparse_attention/rows_cpu.h"
#include "ops/sparse_attention/tiles_cpu.h"

namespace lacuna::cpu {
namespace {

/// Scratch of the tiles for every thread.
class ThreadScratch {
 public:
  explicit ThreadScratch(const AttentionProblem& problem)
      : floats_((tile_scratch_floats(problem.d_qk, problem.d_v) + 15) / 16 * 16) {
    const MemoryScope scope(MemoryCategory::workspace);
    memory_ = empty({omp_get_max_threads(), floats_}, DType::f32);
  }
  float* of_this_thread() const { return memory_.data<float>() + omp_get_thread_num() * floats_; }

 private:
  int64_t floats_;
  Tensor memory_;
};

/// One part of one head, cut into slices.
struct Slicing {
  const Part* part = nullptr;  // null when the head has fewer parts
  int64_t n = 0;
  int64_t rows = kSlice;  // queries of a slice

  int64_t groups() const { return part->view.groups(n); }
  int64_t rows_of(int64_t group) const { return part->view.queries(group).rank(n); }
  int64_t slices() const { return (rows_of(0) + rows - 1) / rows; }  // of the longest group
  Range slice(int64_t group, int64_t s) const { return {s * rows, std::min((s + 1) * rows, rows_of(group))}; }

  /// Keys of `group` between the first positions of slices s and s + 1.
  Range slab(int64_t group, int64_t s) const {
    const Strip queries = part->view.queries(group), keys = part->view.keys(group);
    return {keys.rank(queries.position(s * rows)), keys.rank(std::min(n, queries.position((s + 1) * rows)))};
  }

  /// One more than the largest p for which a slice s meets keys in slab s - p.
  int64_t phases() const {
    int64_t phases = 0;
    for (int64_t group = 0; group < groups(); ++group) {
      const Strip queries = part->view.queries(group), key_list = part->view.keys(group);
      for (int64_t s = 0; s * rows < rows_of(group); ++s) {
        const Range all = slice(group, s);
        const int64_t first = part->keys_of(group, queries.position(all.begin)).begin;
        if (first >= part->keys_of(group, queries.position(all.end - 1)).end) continue;
        const int64_t slab = queries.rank(key_list.position(first)) / rows;
        phases = std::max(phases, s - std::min(s, slab) + 1);
      }
    }
    return phases;
  }
};

/// The m-th part of every head, cut for forward.
Slicing forward_slicing(const AttentionProblem& problem, int64_t h, size_t m) {
  const std::vector<Part>& parts = problem.heads[static_cast<size_t>(h)];
  return {m < parts.size() ? &parts[m] : nullptr, problem.n, kSlice};
}

/// Likewise for backward: as many queries as keep a slab at about kSlice keys, and whole segments.
Slicing backward_slicing(const AttentionProblem& problem, int64_t h, size_t m) {
  Slicing slicing = forward_slicing(problem, h, m);
  if (slicing.part == nullptr) return slicing;
  const View& view = slicing.part->view;
  const Strip& keys = view.keys_of_group_0;
  constexpr int64_t kMostRows = 8 * kSlice;                          // keep enough tasks
  const int64_t thinned = keys.period / keys.width / view.residues;  // queries per key
  slicing.rows = std::min(kMostRows, kSlice * std::max<int64_t>(1, std::min(thinned, kMostRows)));
  const int64_t rows_of_segment = view.segment / view.residues;
  if (rows_of_segment <= slicing.rows) slicing.rows -= slicing.rows % rows_of_segment;
  return slicing;
}

size_t most_parts(const AttentionProblem& problem) {
  size_t most = 0;
  for (const std::vector<Part>& parts : problem.heads) most = std::max(most, parts.size());
  return most;
}

/// Calls task(b, h, slicing, group, s) for each slice s >= first_slice of each group of each head of each batch entry,
/// in parallel. Heads take turns: the same tokens of neighbouring heads share pages.
template <class Task>
void for_each_slice(const AttentionProblem& problem, const std::vector<Slicing>& heads, int64_t first_slice,
                    const Task& task) {
  std::vector<int64_t> tasks_of(heads.size(), 0);  // of each head in one batch entry
  for (size_t h = 0; h < heads.size(); ++h)
    if (heads[h].part != nullptr && heads[h].slices() > first_slice)
      tasks_of[h] = heads[h].groups() * (heads[h].slices() - first_slice);
  const int64_t turns = *std::max_element(tasks_of.begin(), tasks_of.end());
  const int64_t in_batch = turns * problem.n_heads;
  const int64_t per_thread = problem.batch * in_batch / (16 * omp_get_max_threads());
#pragma omp parallel for schedule(dynamic, std::clamp <int64_t>(per_thread, 1, 16))
  for (int64_t index = 0; index < problem.batch * in_batch; ++index) {
    const int64_t h = index % problem.n_heads, turn = index % in_batch / problem.n_heads;
    if (turn >= tasks_of[static_cast<size_t>(h)]) continue;
    const Slicing& slicing = heads[static_cast<size_t>(h)];
    const int64_t s = slicing.slices() - 1 - turn / slicing.groups();  // later slices have more keys: begin with them
    task(index / in_batch, h, slicing, turn % slicing.groups(), s);
  }
}

HeadSequence head_sequence(const AttentionProblem& problem, const AttentionSaved& saved, int64_t b, int64_t h) {
  HeadSequence head{};
  head.n = problem.n;
  head.d_qk = problem.d_qk;
  head.d_v = problem.d_v;
  head.row_qk = problem.n_heads * problem.d_qk;
  head.row_v = problem.n_heads * problem.d_v;
  const int64_t at_qk = b * problem.n * head.row_qk + h * problem.d_qk,
                at_v = b * problem.n * head.row_v + h * problem.d_v;
  head.q = saved.q.data<float>() + at_qk;
  head.k = saved.k.data<float>() + at_qk;
  head.v = saved.v.data<float>() + at_v;
  head.o = saved.o.data<float>() + at_v;
  head.lse = saved.lse.data<float>() + (b * problem.n_heads + h) * problem.n;
  return head;
}

/// delta [batch, n_heads, n]: sum over d_v of d_o * o.
template <class T>
void output_dot_gradient(const AttentionProblem& problem, const AttentionSaved& saved, const Tensor& d_o,
                         const Tensor& delta) {
  const T* const o = saved.o.data<T>();
  const T* const g = d_o.data<T>();
  T* const to = delta.data<T>();
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < problem.batch * problem.n; ++row)
    for (int64_t h = 0; h < problem.n_heads; ++h) {
      const int64_t at = (row * problem.n_heads + h) * problem.d_v;
      to[(row / problem.n * problem.n_heads + h) * problem.n + row % problem.n] = dot(o + at, g + at, problem.d_v);
    }
}

void forward_f32(const AttentionProblem& problem, const AttentionSaved& saved) {
  const ThreadScratch scratch(problem);
  for (size_t m = 0; m < most_parts(problem); ++m) {
    std::vector<Slicing> heads;
    for (int64_t h = 0; h < problem.n_heads; ++h) heads.push_back(forward_slicing(problem, h, m));
    for_each_slice(problem, heads, 0, [&](int64_t b, int64_t h, const Slicing& slicing, int64_t group, int64_t s) {
      const Range rows = slicing.slice(group, s);
      if (!rows.empty())
        forward_slice(head_sequence(problem, saved, b, h), *slicing.part, group, rows, m > 0, scratch.of_this_thread());
    });
  }
}

void backward_f32(const AttentionProblem& problem, const AttentionSaved& saved, const Tensor& d_o, const Tensor& delta,
                  const AttentionGrads& grads) {
  const ThreadScratch scratch(problem);
  for (size_t m = 0; m < most_parts(problem); ++m) {
    std::vector<Slicing> heads;
    int64_t phases = 0;
    for (int64_t h = 0; h < problem.n_heads; ++h) {
      heads.push_back(backward_slicing(problem, h, m));
      if (heads.back().part != nullptr) phases = std::max(phases, heads.back().phases());
    }
    for (int64_t phase = 0; phase < phases; ++phase)
      for_each_slice(problem, heads, phase,
                     [&](int64_t b, int64_t h, const Slicing& slicing, int64_t group, int64_t s) {
                       const Range rows = slicing.slice(group, s), slab = slicing.slab(group, s - phase);
                       if (rows.empty()) return;
                       HeadSequence head = head_sequence(problem, saved, b, h);
                       const int64_t at_qk = head.q - saved.q.data<float>(), at_v = head.v - saved.v.data<float>();
                       head.d_o = d_o.data<float>() + at_v;
                       head.delta = delta.data<float>() + (b * problem.n_heads + h) * problem.n;
                       head.dq = grads.dq.data<float>() + at_qk;
                       head.dk = grads.dk.data<float>() + at_qk;
                       head.dv = grads.dv.data<float>() + at_v;
                       for (int64_t t = slab.begin; t < slab.end; t += kSlice)
                         backward_slab(head, *slicing.part, group, rows, {t, std::min(t + kSlice, slab.end)},
                                       scratch.of_this_thread());
                     });
  }
}

void forward_f64(const AttentionProblem& problem, const AttentionSaved& saved) {
  const int64_t row_qk = problem.n_heads * problem.d_qk, row_v = problem.n_heads * problem.d_v;
  const double* const q = saved.q.data<double>();
  const double* const k = saved.k.data<double>();
  const double* const v = saved.v.data<double>();
  double* const o = saved.o.data<double>();
  double* const lse = saved.lse.data<double>();
#pragma omp parallel for schedule(dynamic, 16)
  for (int64_t index = 0; index < problem.batch * problem.n_heads * problem.n; ++index) {
    const int64_t i = index % problem.n, h = index / problem.n % problem.n_heads,
                  b = index / problem.n / problem.n_heads;
    const int64_t at_qk = b * problem.n * row_qk + h * problem.d_qk, at_v = b * problem.n * row_v + h * problem.d_v;
    lse[index] = attend_row(problem.heads[static_cast<size_t>(h)], i, q + at_qk + i * row_qk, k + at_qk, row_qk,
                            problem.d_qk, v + at_v, row_v, problem.d_v, o + at_v + i * row_v);
  }
}

void backward_f64(const AttentionProblem& problem, const AttentionSaved& saved, const Tensor& d_o, const Tensor& delta,
                  const AttentionGrads& grads) {
  const int64_t row_qk = problem.n_heads * problem.d_qk, row_v = problem.n_heads * problem.d_v;
  const double scale = 1 / std::sqrt(static_cast<double>(problem.d_qk));
#pragma omp parallel for schedule(static)
  for (int64_t bh = 0; bh < problem.batch * problem.n_heads; ++bh) {
    const int64_t b = bh / problem.n_heads, h = bh % problem.n_heads;
    const int64_t at_qk = b * problem.n * row_qk + h * problem.d_qk, at_v = b * problem.n * row_v + h * problem.d_v;
    const double* const q = saved.q.data<double>() + at_qk;
    const double* const k = saved.k.data<double>() + at_qk;
    const double* const v = saved.v.data<double>() + at_v;
    const double* const g = d_o.data<double>() + at_v;
    double* const dq = grads.dq.data<double>() + at_qk;
    double* const dk = grads.dk.data<double>() + at_qk;
    double* const dv = grads.dv.data<double>() + at_v;
    for (int64_t i = 0; i < problem.n; ++i) {
      const double lse = saved.lse.data<double>()[bh * problem.n + i];
      const double delta_i = delta.data<double>()[bh * problem.n + i];
      for_each_key(problem.heads[static_cast<size_t>(h)], i, [&](int64_t j) {
        const double p = std::exp(scale * dot(q + i * row_qk, k + j * row_qk, problem.d_qk) - lse);
        const double ds = scale * p * (dot(g + i * row_v, v + j * row_v, problem.d_v) - delta_i);
        axpy(p, g + i * row_v, dv + j * row_v, problem.d_v);
        axpy(ds, q + i * row_qk, dk + j * row_qk, problem.d_qk);
        axpy(ds, k + j * row_qk, dq + i * row_qk, problem.d_qk);
      });
    }
  }
}

}  // namespace

void attention_forward(Stream, const AttentionProblem& problem, const AttentionSaved& saved) {
  if (saved.q.dtype() == DType::f64)
    forward_f64(problem, saved);
  else
    forward_f32(problem, saved);
}

void attention_backward(Stream, const AttentionProblem& problem, const AttentionSaved& saved, const Tensor& d_o,
                        const AttentionGrads& grads) {
  for (const Tensor& grad : {grads.dq, grads.dk, grads.dv}) fill(grad, 0.0);
  Tensor delta;
  {
    const MemoryScope scope(MemoryCategory::workspace);
    delta = empty_like(saved.lse);
  }
  if (saved.q.dtype() == DType::f64) {
    output_dot_gradient<double>(problem, saved, d_o, delta);
    backward_f64(problem, saved, d_o, delta, grads);
  } else {
    output_dot_gradient<float>(problem, saved, d_o, delta);
    backward_f32(problem, saved, d_o, delta, grads);
  }
}

}  // namespace lacuna::cpu

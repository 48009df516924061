// Attention on the CPU, in the tasks of slicing_cpu.h. f64 runs row by row, all others run the tiles of tiles_cpu.cpp.

#include <omp.h>

#include <algorithm>
#include <optional>

#include "core/allocator.h"
#include "core/parallel.h"
#include "ops/sparse_attention/chunks_cpu.h"
#include "ops/sparse_attention/kernels.h"
#include "ops/sparse_attention/rows_cpu.h"
#include "ops/sparse_attention/slicing_cpu.h"
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

/// The m-th part of every head, cut by `cut` (forward_slicing or backward_slicing). Neighbouring heads with the same
/// part share tasks where groups are short: a position has their rows side by side, which is faster to read than a row
/// here and a row there.
std::vector<Slicing> slicings_of(const AttentionProblem& problem, size_t m, Slicing (*cut)(const Part*, int64_t)) {
  std::vector<Slicing> slicings;
  Slicing* leader = nullptr;
  slicings.reserve(problem.heads.size());  // leader points into it
  for (const std::vector<Part>& parts : problem.heads) {
    Slicing& slicing = slicings.emplace_back(cut(m < parts.size() ? &parts[m] : nullptr, problem.n));
    if (slicing.part == nullptr) {
      leader = nullptr;
      continue;
    }
    const int64_t rows = std::max(slicing.rows_of(0), slicing.part->view.keys(0).rank(problem.n));
    if (leader != nullptr && *leader->part == parts[m] && (leader->heads + 1) * rows <= kGathered) {
      ++leader->heads;
      slicing.part = nullptr;
    } else {
      leader = &slicing;
    }
  }
  return slicings;
}

size_t most_parts(const AttentionProblem& problem) {
  size_t most = 0;
  for (const std::vector<Part>& parts : problem.heads) most = std::max(most, parts.size());
  return most;
}

/// A slice of queries of one group.
struct Slice {
  int64_t b, h;
  const Slicing* slicing;
  int64_t group, s;
};

/// Calls task(slice, next) for each slice s >= first_slice of each group of each head of each batch entry, in parallel;
/// `next` is the slice that follows, if any. Heads take turns: the same tokens of neighbouring heads share pages.
template <class Task>
void for_each_slice(const AttentionProblem& problem, const std::vector<Slicing>& heads, int64_t first_slice,
                    const Task& task) {
  std::vector<int64_t> leaders;  // heads that have slices
  int64_t turns = 0, groups = 0;
  const auto tasks_of = [&](const Slicing& head) { return head.groups() * (head.slices() - first_slice); };
  for (size_t h = 0; h < heads.size(); ++h)
    if (heads[h].part != nullptr && heads[h].slices() > first_slice) {
      leaders.push_back(static_cast<int64_t>(h));
      turns = std::max(turns, tasks_of(heads[h]));
      groups = std::max(groups, heads[h].groups());
    }
  const auto n_leaders = static_cast<int64_t>(leaders.size());
  const int64_t in_batch = turns * n_leaders, count = problem.batch * in_batch, threads = omp_get_max_threads();
  const auto slice_at = [&](int64_t index) -> std::optional<Slice> {
    if (index >= count) return {};
    const int64_t h = leaders[static_cast<size_t>(index % n_leaders)], turn = index % in_batch / n_leaders;
    const Slicing& slicing = heads[static_cast<size_t>(h)];
    if (turn >= tasks_of(slicing)) return {};
    const int64_t s = slicing.slices() - 1 - turn / slicing.groups();  // later slices have more keys: begin with them
    const int64_t group = turn % slicing.groups();
    if (slicing.slice(group, s).empty()) return {};
    return Slice{index / in_batch, h, &slicing, group, s};
  };
  // Neighbouring groups share cache lines of lse and delta: one thread takes 16 of them where there are many.
  const int64_t chunk =
      groups >= 32 * threads ? 16 * n_leaders : std::clamp<int64_t>(count / (16 * threads), 1, 16);
#pragma omp parallel for schedule(dynamic, chunk)
  for (int64_t index = 0; index < count; ++index)
    if (const std::optional<Slice> slice = slice_at(index)) task(*slice, slice_at(index + 1));
}

/// The rows of head h of batch entry b in columns [batch, n, n_heads * width].
Rows head_rows(const AttentionProblem& problem, const TensorColumns& x, int64_t b, int64_t h) {
  const int64_t distance = x.row_distance(), width = x.width / problem.n_heads;
  return {x.raw() + (b * problem.n * distance + h * width) * size_of(x.dtype()), x.dtype(), distance, width};
}

ResultRows head_rows_f32(const AttentionProblem& problem, const TensorColumns& x, int64_t b, int64_t h) {
  const int64_t distance = x.row_distance(), width = x.width / problem.n_heads;
  return {x.data<float>() + b * problem.n * distance + h * width, distance, width};
}

HeadSequence head_sequence(const AttentionProblem& problem, const AttentionSaved& saved, int64_t b, int64_t h) {
  HeadSequence head{};
  head.n = problem.n;
  head.q = head_rows(problem, saved.q, b, h);
  head.k = head_rows(problem, saved.k, b, h);
  head.v = head_rows(problem, saved.v, b, h);
  head.lse = saved.lse.data<float>() + (b * problem.n_heads + h) * problem.n;
  return head;
}

/// An f32 tensor to sum the elements of `t` in: t itself when it is f32.
Tensor f32_sums_of(const Tensor& t) {
  if (t.dtype() == DType::f32) return t;
  const MemoryScope scope(MemoryCategory::workspace);
  return empty(t.shape(), DType::f32);
}

/// The tensors of the gradients, each once.
std::vector<Tensor> tensors_of(const AttentionGrads& grads) {
  if (grads.dq.tensor.raw() == grads.dk.tensor.raw()) return {grads.dq.tensor};
  return {grads.dq.tensor, grads.dk.tensor, grads.dv.tensor};
}

/// The same columns of other tensors, in the order of tensors_of().
AttentionGrads in_tensors(const AttentionGrads& grads, const std::vector<Tensor>& tensors) {
  const auto columns = [](const TensorColumns& x, const Tensor& t) { return TensorColumns(t, x.first, x.width); };
  return {columns(grads.dq, tensors.front()), columns(grads.dk, tensors[tensors.size() / 2]),
          columns(grads.dv, tensors.back())};
}

template <class T>
void clear(const TensorColumns& x) {
  const auto clear_rows = [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) std::fill_n(x.data<T>() + r * x.row_distance(), x.width, T{0});
  };
  parallel_for(x.tensor.numel() / x.row_distance(), clear_rows, /*grain=*/64);
}

void forward_tiles(const AttentionProblem& problem, const AttentionSaved& saved) {
  const ThreadScratch scratch(problem);
  const Tensor o = f32_sums_of(saved.o);
  for (size_t m = 0; m < most_parts(problem); ++m) {
    const std::vector<Slicing> heads = slicings_of(problem, m, forward_slicing);
    const auto task_of = [&](const Slice& slice) {
      HeadSequence head = head_sequence(problem, saved, slice.b, slice.h);
      head.o = head_rows_f32(problem, o, slice.b, slice.h);
      const Slicing& slicing = *slice.slicing;
      return ForwardTask{head, slicing.heads, slicing.part, slice.group, slicing.slice(slice.group, slice.s), m > 0};
    };
    for_each_slice(problem, heads, 0, [&](const Slice& slice, const std::optional<Slice>& next) {
      const ForwardTask task = task_of(slice), following = task_of(next.value_or(slice));
      forward_slice(task, next ? &following : nullptr, scratch.of_this_thread());
    });
  }
  if (saved.o.dtype() != DType::f32) copy(o, saved.o);
}

/// Calls task(block, next) for each pair of slice and slab that may share a pair of positions, of each part of each
/// head of each batch entry, phase by phase; `next` is the block that follows, or null. Every query of a head is in one
/// block that is the first to meet it, and so is every key of every group, unless the part is cut into chunks.
template <class T, class Task>
void for_each_block(const AttentionProblem& problem, const AttentionGrads& grads, const Task& task) {
  for (size_t m = 0; m < most_parts(problem); ++m) {
    std::vector<Slicing> heads = slicings_of(problem, m, backward_slicing);
    take_chunked_parts<T>(problem, heads, m == 0, grads, task);
    int64_t phases = m == 0 ? 1 : 0;
    for (const Slicing& slicing : heads)
      if (slicing.part != nullptr) phases = std::max(phases, slicing.phases());
    for (int64_t phase = 0; phase < phases; ++phase) {
      const auto block_of = [&](const Slice& x) {
        const Slicing& slicing = *x.slicing;
        return Block<T>{x.b,
                        x.h,
                        slicing.heads,
                        slicing.part,
                        x.group,
                        slicing.slice(x.group, x.s),
                        slicing.slab(x.group, x.s - phase),
                        m == 0 && phase == 0,
                        sums_of_head<T>(problem, grads, x.b, x.h)};
      };
      for_each_slice(problem, heads, phase, [&](const Slice& slice, const std::optional<Slice>& next) {
        const Block<T> block = block_of(slice), following = block_of(next.value_or(slice));
        task(block, next ? &following : nullptr);
      });
    }
  }
}

/// Whether each position is a key of exactly one group. Of no such part dk and dv are begun in chunks.
bool keys_are_all_positions(const View& view) {
  const Strip& keys = view.keys_of_group_0;
  return view.key_end == kUnbounded && keys.first == 0 && keys.period == view.residues * keys.width &&
         (keys.width == 1 || view.residues == 1);
}

void backward_tiles(const AttentionProblem& problem, const AttentionSaved& saved, const Tensor& d_o,
                    const AttentionGrads& grads) {
  const ThreadScratch scratch(problem);
  const std::vector<Tensor> results = tensors_of(grads);
  std::vector<Tensor> sum_tensors;
  for (const Tensor& t : results) sum_tensors.push_back(f32_sums_of(t));
  const AttentionGrads sums = in_tensors(grads, sum_tensors);
  Tensor delta;
  {
    const MemoryScope scope(MemoryCategory::workspace);
    delta = empty_like(saved.lse);
  }
  const bool begin_keys = std::all_of(problem.heads.begin(), problem.heads.end(), [](const std::vector<Part>& parts) {
    return keys_are_all_positions(parts.front().view);
  });
  if (!begin_keys) {
    clear<float>(sums.dk);
    clear<float>(sums.dv);
  }
  const auto task_of = [&](const Block<float>& x) {
    HeadSequence head = head_sequence(problem, saved, x.b, x.h);
    head.saved_o = head_rows(problem, saved.o, x.b, x.h);
    head.d_o = head_rows(problem, d_o, x.b, x.h);
    head.delta = delta.data<float>() + (x.b * problem.n_heads + x.h) * problem.n;
    head.dq = head_rows_f32(problem, sums.dq, x.b, x.h);
    head.dk = {x.sums.dk, x.sums.row_qk, problem.d_qk};
    head.dv = {x.sums.dv, x.sums.row_v, problem.d_v};
    return BackwardTask{head, x.heads, x.part, x.group, x.rows, x.keys, {x.first, x.first && begin_keys}};
  };
  for_each_block<float>(problem, sums, [&](const Block<float>& block, const Block<float>* next) {
    const BackwardTask task = task_of(block), following = task_of(next != nullptr ? *next : block);
    backward_block(task, next != nullptr ? &following : nullptr, scratch.of_this_thread());
  });
  if (grads.dq.dtype() == DType::f32) return;
  for (size_t i = 0; i < results.size(); ++i) copy(sum_tensors[i], results[i]);
}

/// The rows of one head in f64: those of positions are `distance` elements apart.
struct Rows64 {
  double* data;
  int64_t distance;
  double* operator[](int64_t position) const { return data + position * distance; }
};

Rows64 head_rows_f64(const AttentionProblem& problem, const TensorColumns& x, int64_t b, int64_t h) {
  const int64_t distance = x.row_distance(), width = x.width / problem.n_heads;
  return {x.data<double>() + b * problem.n * distance + h * width, distance};
}

void forward_f64(const AttentionProblem& problem, const AttentionSaved& saved) {
  double* const lse = saved.lse.data<double>();
#pragma omp parallel for schedule(dynamic, 16)
  for (int64_t index = 0; index < problem.batch * problem.n_heads * problem.n; ++index) {
    const int64_t i = index % problem.n, h = index / problem.n % problem.n_heads,
                  b = index / problem.n / problem.n_heads;
    const Rows64 q = head_rows_f64(problem, saved.q, b, h), k = head_rows_f64(problem, saved.k, b, h),
                 v = head_rows_f64(problem, saved.v, b, h), o = head_rows_f64(problem, saved.o, b, h);
    lse[index] = attend_row<double>(problem.heads[static_cast<size_t>(h)], i, q[i], k.data, k.distance, problem.d_qk,
                                    v.data, v.distance, problem.d_v, o[i]);
  }
}

void backward_f64(const AttentionProblem& problem, const AttentionSaved& saved, const Tensor& d_o,
                  const AttentionGrads& grads) {
  const double scale = 1 / std::sqrt(static_cast<double>(problem.d_qk));
  for (const TensorColumns& gradient : {grads.dq, grads.dk, grads.dv}) clear<double>(gradient);
  for_each_block<double>(problem, grads, [&](const Block<double>& block, const Block<double>*) {
    const auto& [b, first_head, heads, part_of, group, rows, slab, first, sums] = block;
    const Part& part = *part_of;
    for (int64_t h = first_head; h < first_head + heads; ++h) {
      const Rows64 q = head_rows_f64(problem, saved.q, b, h), k = head_rows_f64(problem, saved.k, b, h),
                   v = head_rows_f64(problem, saved.v, b, h), o = head_rows_f64(problem, saved.o, b, h),
                   g = head_rows_f64(problem, d_o, b, h), dq = head_rows_f64(problem, grads.dq, b, h);
      const double* const lse = saved.lse.data<double>() + (b * problem.n_heads + h) * problem.n;
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        const int64_t i = part.view.queries(group).position(row);
        const Range keys = part.keys_of(group, i);
        const double delta = dot(o[i], g[i], problem.d_v);
        for (int64_t t = std::max(keys.begin, slab.begin); t < std::min(keys.end, slab.end); ++t) {
          const int64_t j = part.view.keys(group).position(t);
          double* const dk = sums.dk + (h - first_head) * problem.d_qk + j * sums.row_qk;
          double* const dv = sums.dv + (h - first_head) * problem.d_v + j * sums.row_v;
          if (part.skips(i, j)) continue;
          const double p = std::exp(scale * dot(q[i], k[j], problem.d_qk) - lse[i]);
          const double ds = scale * p * (dot(g[i], v[j], problem.d_v) - delta);
          axpy<double>(p, g[i], dv, problem.d_v);
          axpy<double>(ds, q[i], dk, problem.d_qk);
          axpy<double>(ds, k[j], dq[i], problem.d_qk);
        }
      }
    }
  });
}

}  // namespace

void attention_forward(Stream, const AttentionProblem& problem, const AttentionSaved& saved) {
  if (saved.q.dtype() == DType::f64)
    forward_f64(problem, saved);
  else
    forward_tiles(problem, saved);
}

void attention_backward(Stream, const AttentionProblem& problem, const AttentionSaved& saved, const Tensor& d_o,
                        const AttentionGrads& grads) {
  if (saved.q.dtype() == DType::f64)
    backward_f64(problem, saved, d_o, grads);
  else
    backward_tiles(problem, saved, d_o, grads);
}

}  // namespace lacuna::cpu

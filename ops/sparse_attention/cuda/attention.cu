// Attention on a GPU: which kernels compute a call.

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "core/allocator.h"
#include "core/cuda/runtime.h"
#include "ops/sparse_attention/cuda/row_kernels.h"
#include "ops/sparse_attention/cuda/tile_kernels.h"
#include "ops/sparse_attention/kernels.h"

namespace lacuna::gpu {
namespace {

/// The rows of the heads in columns [batch, n, n_heads * width].
template <class T>
HeadRows<T> head_rows(const AttentionProblem& problem, const TensorColumns& x) {
  const int64_t token = x.row_distance();
  return {data<std::remove_const_t<T>>(x.tensor) + x.first, problem.n * token, token, x.width / problem.n_heads};
}

Tensor delta_like(const Tensor& lse) {
  const MemoryScope scope(MemoryCategory::workspace);
  return empty_like(lse);
}

// Columns [rows, width] of rows `distance` words apart become 0.   thread: one word
template <class Word>
__global__ void clear_columns_kernel(Word* columns, int64_t width, int64_t distance, int64_t words) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < words) columns[i / width * distance + i % width] = 0;
}

/// Not cudaMemset2DAsync: CUDA does not update every such node of a graph when memory moves.
void clear(Stream stream, const TensorColumns& x) {
  const int64_t distance = x.row_distance(), words = x.tensor.numel() / distance * x.width;
  const auto run = [&]<class Word>(Word* columns) {
    launch(stream, clear_columns_kernel<Word>, dim3(grid_of(ceil_div(words, kBlockThreads), "sparse_attention")),
           dim3(kBlockThreads), 0, columns, x.width, distance, words);
  };
  if (size_of(x.dtype()) == 2)
    run(reinterpret_cast<uint16_t*>(x.raw()));
  else
    run(reinterpret_cast<uint32_t*>(x.raw()));
}

/// Whether the tensor-core kernels compute such heads, of 16-bit numbers in these columns; the kernels of rows compute
/// all.
bool fits_tiles(const AttentionProblem& problem, std::initializer_list<TensorColumns> columns) {
  return fits_tensor_cores(problem.d_qk, problem.d_v) &&
         std::all_of(columns.begin(), columns.end(), [](const TensorColumns& x) {
           return is_aligned(x.raw(), 16) && x.row_distance() % 8 == 0;
         });
}

bool is_empty(const AttentionProblem& problem) {
  return std::all_of(problem.heads.begin(), problem.heads.end(), [](const auto& parts) { return parts.empty(); });
}

/// What forward takes.
template <class T>
AttentionCall<T> call_of(const AttentionProblem& problem, const AttentionSaved& saved) {
  AttentionCall<T> call{};
  call.q = head_rows<const T>(problem, saved.q);
  call.k = head_rows<const T>(problem, saved.k);
  call.v = head_rows<const T>(problem, saved.v);
  call.o = head_rows<T>(problem, saved.o);
  call.lse = saved.lse.data<float>();
  call.batch = problem.batch, call.n = problem.n, call.n_heads = problem.n_heads;
  call.d_qk = static_cast<int>(problem.d_qk), call.d_v = static_cast<int>(problem.d_v);
  call.scale = 1.0f / std::sqrt(static_cast<float>(problem.d_qk));
  return call;
}

/// What backward takes, but for delta.
template <class T>
AttentionCall<T> call_of(const AttentionProblem& problem, const AttentionSaved& saved, const Tensor& d_o,
                         const AttentionGrads& grads) {
  AttentionCall<T> call = call_of<T>(problem, saved);
  call.d_o = head_rows<const T>(problem, d_o);
  call.dq = head_rows<T>(problem, grads.dq);
  call.dk = head_rows<T>(problem, grads.dk);
  call.dv = head_rows<T>(problem, grads.dv);
  return call;
}

/// Calls launch(BandLaunch) for every table of every pass.
template <class T, class Launch>
void for_each_table(const AttentionCall<T>& call, const std::vector<std::vector<BandTable>>& passes,
                    const Launch& launch) {
  for (size_t m = 0; m < passes.size(); ++m)
    for (const BandTable& table : passes[m]) launch(BandLaunch<T>{call, table, /*joins=*/m > 0});
}

template <class T>
void forward_with_tiles(Stream stream, AttentionProblem problem, const AttentionCall<T>& call) {
  for (const ColumnTable& table : take_columns(problem, max_column_rows(stream.device, call.d_qk, call.d_v)))
    forward_columns(stream, ColumnLaunch<T>{call, table});
  for_each_table(call, passes_of(problem, Cut::queries, kTile), [&](const BandLaunch<T>& bands) {
    if (hopper_computes(stream.device, bands))
      hopper_forward(stream, bands);
    else
      forward_tiles(stream, bands);
  });
}

template <class T>
void backward_bands_with_tiles(Stream stream, const AttentionProblem& problem, AttentionCall<T> call,
                               const AttentionSaved& saved, const AttentionGrads& grads) {
  const Tensor delta = delta_like(saved.lse);
  call.delta = delta.data<float>();
  for_each_table(call, passes_of(problem, Cut::queries, kTile),
                 [&](const BandLaunch<T>& bands) { backward_query_tiles(stream, bands); });
  if (!keys_have_one_group(problem)) {  // a key in several groups would have several owners
    for_each_table(call, passes_of(problem, Cut::head, 1),
                   [&](const BandLaunch<T>& bands) { backward_key_rows(stream, bands); });
    return;
  }
  if (!first_bands_have_all_keys(problem)) {
    clear(stream, grads.dk);
    clear(stream, grads.dv);
  }
  for_each_table(call, passes_of(problem, Cut::keys, kTile),
                 [&](const BandLaunch<T>& bands) { backward_key_tiles(stream, bands); });
}

template <class T>
void backward_with_tiles(Stream stream, AttentionProblem problem, const AttentionCall<T>& call,
                         const AttentionSaved& saved, const AttentionGrads& grads) {
  const std::vector<ColumnTable> columns = take_columns(problem, max_column_rows(stream.device, call.d_qk, call.d_v));
  std::vector<SlidingTable> sliding;
  if (sliding_fits(stream.device, call.d_qk, call.d_v)) sliding = take_sliding(problem);
  // First the others, which may clear the gradients of all heads.
  if (!is_empty(problem)) backward_bands_with_tiles(stream, problem, call, saved, grads);
  for (const ColumnTable& table : columns) backward_columns(stream, ColumnLaunch<T>{call, table});
  for (const SlidingTable& table : sliding) backward_sliding(stream, SlidingLaunch<T>{call, table});
}

template <class T>
void forward_with_rows(Stream stream, const AttentionProblem& problem, const AttentionCall<T>& call) {
  for_each_table(call, passes_of(problem, Cut::head, 1),
                 [&](const BandLaunch<T>& bands) { forward_rows(stream, bands); });
}

template <class T>
void backward_with_rows(Stream stream, const AttentionProblem& problem, AttentionCall<T> call,
                        const AttentionSaved& saved) {
  const Tensor delta = delta_like(saved.lse);
  call.delta = delta.data<float>();
  for_each_table(call, passes_of(problem, Cut::head, 1), [&](const BandLaunch<T>& bands) {
    backward_query_rows(stream, bands);
    backward_key_rows(stream, bands);
  });
}

void check_width(const AttentionProblem& problem) {
  check(problem.d_qk + problem.d_v <= kMaxRowWidth, "sparse_attention: d_qk + d_v must be at most ", kMaxRowWidth,
        " on a GPU, got ", problem.d_qk, " + ", problem.d_v);
}

}  // namespace

bool fits_tensor_cores(int64_t d_qk, int64_t d_v) {
  return d_qk % 8 == 0 && d_v % 8 == 0 && std::max(d_qk, d_v) <= kMaxTileWidth;
}

void check_attention(const AttentionProblem& problem) {
  check_width(problem);
  passes_of(problem, Cut::head, 1);
}

void attention_forward(Stream stream, const AttentionProblem& problem, const AttentionSaved& saved) {
  check_width(problem);
  if (saved.o.numel() == 0) return;
  dispatch_float(saved.q.dtype(), "sparse_attention", [&]<class T>() {
    const AttentionCall<T> call = call_of<T>(problem, saved);
    if constexpr (sizeof(T) == 2)
      if (fits_tiles(problem, {saved.q, saved.k, saved.v, saved.o})) return forward_with_tiles(stream, problem, call);
    forward_with_rows(stream, problem, call);
  });
}

void attention_backward(Stream stream, const AttentionProblem& problem, const AttentionSaved& saved, const Tensor& d_o,
                        const AttentionGrads& grads) {
  check_width(problem);
  if (saved.o.numel() == 0) return;
  dispatch_float(saved.q.dtype(), "sparse_attention", [&]<class T>() {
    const AttentionCall<T> call = call_of<T>(problem, saved, d_o, grads);
    if constexpr (sizeof(T) == 2)
      if (fits_tiles(problem, {saved.q, saved.k, saved.v, saved.o, d_o, grads.dq, grads.dk, grads.dv}))
        return backward_with_tiles(stream, problem, call, saved, grads);
    backward_with_rows(stream, problem, call, saved);
  });
}

}  // namespace lacuna::gpu

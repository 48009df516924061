// Attention on a GPU: which kernels compute a call.

#include <algorithm>
#include <cmath>

#include "core/allocator.h"
#include "core/cuda/runtime.h"
#include "ops/sparse_attention/cuda/row_kernels.h"
#include "ops/sparse_attention/cuda/tile_kernels.h"
#include "ops/sparse_attention/kernels.h"

namespace lacuna::gpu {
namespace {

/// The rows of the heads of a tensor [batch, n, n_heads * width].
template <class T>
HeadRows<T> head_rows(const AttentionProblem& problem, const Tensor& t) {
  const int64_t token = t.dim(2);
  return {data<std::remove_const_t<T>>(t), problem.n * token, token, token / problem.n_heads};
}

float scale_of(const AttentionProblem& problem) { return 1.0f / std::sqrt(static_cast<float>(problem.d_qk)); }

Tensor delta_like(const Tensor& lse) {
  const MemoryScope scope(MemoryCategory::workspace);
  return empty_like(lse);
}

void clear(Stream stream, const Tensor& t) { set_bytes(stream, t.raw(), 0, t.bytes()); }

/// Whether the tensor-core kernels compute such heads; the kernels of rows compute all.
bool fits_tiles(const AttentionProblem& problem, DType dtype) {
  return (dtype == DType::bf16 || dtype == DType::f16) && problem.d_qk % 8 == 0 && problem.d_v % 8 == 0 &&
         problem.d_qk <= kMaxTileWidth && problem.d_v <= kMaxTileWidth;
}

template <class T>
AttentionRows<T> rows_call(const AttentionProblem& problem, const AttentionSaved& saved) {
  AttentionRows<T> call{};
  call.q = head_rows<const T>(problem, saved.q);
  call.k = head_rows<const T>(problem, saved.k);
  call.v = head_rows<const T>(problem, saved.v);
  call.o = head_rows<T>(problem, saved.o);
  call.lse = saved.lse.data<float>();
  call.n = problem.n, call.n_heads = problem.n_heads;
  call.d_qk = static_cast<int>(problem.d_qk), call.d_v = static_cast<int>(problem.d_v);
  call.scale = scale_of(problem);
  return call;
}

template <class T>
AttentionRows<T> backward_rows_call(const AttentionProblem& problem, const AttentionSaved& saved, const Tensor& delta,
                                    const Tensor& d_o, const AttentionGrads& grads) {
  AttentionRows<T> call = rows_call<T>(problem, saved);
  call.delta = delta.data<float>();
  call.d_o = head_rows<const T>(problem, d_o);
  call.dq = head_rows<T>(problem, grads.dq);
  call.dk = head_rows<T>(problem, grads.dk);
  call.dv = head_rows<T>(problem, grads.dv);
  return call;
}

/// Calls launch(call) for every table of whole heads.
template <class T, class Launch>
void for_each_table(const AttentionProblem& problem, AttentionRows<T> call, const Launch& launch) {
  for (const std::vector<BandTable>& pass : passes_of(problem, Cut::head, 1))
    for (const BandTable& table : pass) {
      call.table = table;
      launch(call);
    }
}

template <class T>
void forward_with_tiles(Stream stream, const AttentionProblem& problem, const AttentionSaved& saved) {
  ForwardTiles<T> call{};
  call.q = head_rows<const T>(problem, saved.q);
  call.k = head_rows<const T>(problem, saved.k);
  call.v = head_rows<const T>(problem, saved.v);
  call.o = head_rows<T>(problem, saved.o);
  call.lse = saved.lse.data<float>();
  call.n = problem.n, call.n_heads = problem.n_heads;
  call.d_qk = static_cast<int>(problem.d_qk), call.d_v = static_cast<int>(problem.d_v);
  call.scale = scale_of(problem);
  for (const std::vector<BandTable>& pass : passes_of(problem, Cut::queries, kTile)) {
    for (const BandTable& table : pass) {
      call.table = table;
      if (hopper_computes(stream.device, call))
        hopper_forward(stream, call, problem.batch);
      else
        forward_tiles(stream, call, problem.batch);
    }
    call.merge = true;
  }
}

template <class T>
void backward_with_tiles(Stream stream, const AttentionProblem& problem, const AttentionSaved& saved, const Tensor& d_o,
                         const AttentionGrads& grads) {
  const Tensor delta = delta_like(saved.lse);
  BackwardTiles<T> call{};
  call.q = head_rows<const T>(problem, saved.q);
  call.k = head_rows<const T>(problem, saved.k);
  call.v = head_rows<const T>(problem, saved.v);
  call.o = head_rows<const T>(problem, saved.o);
  call.d_o = head_rows<const T>(problem, d_o);
  call.dq = head_rows<T>(problem, grads.dq);
  call.dk = head_rows<T>(problem, grads.dk);
  call.dv = head_rows<T>(problem, grads.dv);
  call.lse = saved.lse.data<float>();
  call.delta = delta.data<float>();
  call.n = problem.n, call.n_heads = problem.n_heads;
  call.d_qk = static_cast<int>(problem.d_qk), call.d_v = static_cast<int>(problem.d_v);
  call.scale = scale_of(problem);
  for (const std::vector<BandTable>& pass : passes_of(problem, Cut::queries, kTile)) {
    for (const BandTable& table : pass) {
      call.table = table;
      backward_query_tiles(stream, call, problem.batch);
    }
    call.add = true;
  }
  if (!keys_have_one_group(problem)) {  // a key in several groups would have several owners
    for_each_table(problem, backward_rows_call<T>(problem, saved, delta, d_o, grads),
                   [&](const auto& rows) { backward_key_rows(stream, rows, problem.batch); });
    return;
  }
  if (!first_bands_have_all_keys(problem)) {
    clear(stream, grads.dk);
    clear(stream, grads.dv);
  }
  call.add = false;
  for (const std::vector<BandTable>& pass : passes_of(problem, Cut::keys, kTile)) {
    for (const BandTable& table : pass) {
      call.table = table;
      backward_key_tiles(stream, call, problem.batch);
    }
    call.add = true;
  }
}

template <class T>
void forward_with_rows(Stream stream, const AttentionProblem& problem, const AttentionSaved& saved) {
  for_each_table(problem, rows_call<T>(problem, saved),
                 [&](const auto& call) { forward_rows(stream, call, problem.batch); });
}

template <class T>
void backward_with_rows(Stream stream, const AttentionProblem& problem, const AttentionSaved& saved, const Tensor& d_o,
                        const AttentionGrads& grads) {
  const Tensor delta = delta_like(saved.lse);
  for_each_table(problem, backward_rows_call<T>(problem, saved, delta, d_o, grads), [&](const auto& call) {
    backward_query_rows(stream, call, problem.batch);
    backward_key_rows(stream, call, problem.batch);
  });
}

void check_width(const AttentionProblem& problem) {
  check(problem.d_qk + problem.d_v <= kMaxRowWidth, "sparse_attention: d_qk + d_v must be at most ", kMaxRowWidth,
        " on a GPU, got ", problem.d_qk, " + ", problem.d_v);
}

}  // namespace

void attention_forward(Stream stream, const AttentionProblem& problem, const AttentionSaved& saved) {
  check_width(problem);
  dispatch_float(saved.q.dtype(), "sparse_attention", [&]<class T>() {
    if constexpr (sizeof(T) == 2)
      if (fits_tiles(problem, saved.q.dtype())) return forward_with_tiles<T>(stream, problem, saved);
    forward_with_rows<T>(stream, problem, saved);
  });
}

void attention_backward(Stream stream, const AttentionProblem& problem, const AttentionSaved& saved, const Tensor& d_o,
                        const AttentionGrads& grads) {
  check_width(problem);
  dispatch_float(saved.q.dtype(), "sparse_attention", [&]<class T>() {
    if constexpr (sizeof(T) == 2)
      if (fits_tiles(problem, saved.q.dtype())) return backward_with_tiles<T>(stream, problem, saved, d_o, grads);
    backward_with_rows<T>(stream, problem, saved, d_o, grads);
  });
}

}  // namespace lacuna::gpu

// Attention row by row on a GPU: see row_kernels.h.
//
//   grid       a warp per row: a query, or a key in backward_key_rows; neighbouring warps take neighbouring heads
//   lane       scores: one of 32 keys (or queries) at a time; sums: every 32nd number of the row
//   shared     the sums of each warp, f32
//   precision  f32 throughout, rounded to T once
//   requires   any n, width and strides

#include "ops/sparse_attention/cuda/row_kernels.h"
#include "ops/sparse_attention/cuda/softmax_rows.cuh"

namespace lacuna::gpu {
namespace {

constexpr int kWarps = 4;  // of a block
template <class T>
__device__ __forceinline__ void store_row(const float* sum, float factor, T* row, int width) {
  for (int c = threadIdx.x % 32; c < width; c += 32) row[c] = round_to<T>(sum[c] * factor);
}

/// The row of a warp.
struct WarpRow {
  const HeadBands* head;  // null past the last row
  int64_t h, b, position;

  __device__ __forceinline__ WarpRow(const BandTable& table, int64_t n, int64_t batch) {
    const int64_t index = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
    head = index < batch * n * table.n_heads ? &table.heads[index % table.n_heads] : nullptr;
    h = head != nullptr ? head->head : 0;
    position = index / table.n_heads % n;
    b = index / table.n_heads / n;
  }
};

// o = softmax(scale q k^T) v of one query, and its log-sum-exp.
template <class T>
__global__ void attention_forward_rows(const __grid_constant__ BandLaunch<T> call) {
  LACUNA_DYNAMIC_SHARED(float, shared);
  const WarpRow row(call.table, call.n, call.batch);
  if (row.head == nullptr) return;
  const int lane = threadIdx.x % 32;
  const int64_t i = row.position;
  RowSoftmax softmax{shared + threadIdx.x / 32 * call.d_v};
  clear_row(softmax.o, call.d_v);
  const T* const q = call.q.of(row.b, row.h) + i * call.q.token;
  const T* const k = call.k.of(row.b, row.h);
  const T* const v = call.v.of(row.b, row.h);
  const Band* const bands = call.table.bands + row.head->first;

  for (int p = row.head->begin; p < row.head->end; ++p) {
    const int64_t group = i % bands[p].view.residues;
    const Strip keys = bands[p].view.keys(group);
    const Range range = keys_of(bands, p, group, i);
    for (int64_t t = range.begin; t < range.end; t += 32) {
      const int64_t j = keys.position(lesser(t + lane, range.end - 1));
      const bool has = t + lane < range.end && !skips(bands, p, i, j);
      const float s = has ? call.scale * dot(q, k + j * call.k.token, call.d_qk) : -INFINITY;
      softmax.add(s, j, v, call.v.token, call.d_v);
    }
  }
  const float sum = warp_sum(softmax.sum);
  store_row(softmax.o, sum == 0.0f ? 0.0f : 1.0f / sum, call.o.of(row.b, row.h) + i * call.o.token, call.d_v);
  if (lane == 0)
    call.lse[(row.b * call.n_heads + row.h) * call.n + i] = sum == 0.0f ? -INFINITY : softmax.top + logf(sum);
}

// dq of one query, and its delta.
//   p = exp(scale q . k - lse)    ds = p (d_o . v - delta)    dq = scale sum ds k
template <class T>
__global__ void attention_backward_query_rows(const __grid_constant__ BandLaunch<T> call) {
  LACUNA_DYNAMIC_SHARED(float, shared);
  const WarpRow row(call.table, call.n, call.batch);
  if (row.head == nullptr) return;
  const int lane = threadIdx.x % 32;
  const int64_t i = row.position, at = (row.b * call.n_heads + row.h) * call.n + i;
  float* const dq = shared + threadIdx.x / 32 * call.d_qk;
  clear_row(dq, call.d_qk);
  const T* const q = call.q.of(row.b, row.h) + i * call.q.token;
  const T* const k = call.k.of(row.b, row.h);
  const T* const v = call.v.of(row.b, row.h);
  const T* const o = call.o.of(row.b, row.h) + i * call.o.token;
  const T* const d_o = call.d_o.of(row.b, row.h) + i * call.d_o.token;
  const Band* const bands = call.table.bands + row.head->first;

  float delta = 0.0f;
  for (int c = lane; c < call.d_v; c += 32) delta += to_float(d_o[c]) * to_float(o[c]);
  delta = warp_sum(delta);
  if (lane == 0) call.delta[at] = delta;
  const float lse = call.lse[at];
  for (int p = row.head->begin; p < row.head->end; ++p) {
    const int64_t group = i % bands[p].view.residues;
    const Strip keys = bands[p].view.keys(group);
    const Range range = keys_of(bands, p, group, i);
    for (int64_t t = range.begin; t < range.end; t += 32) {
      const int64_t j = keys.position(lesser(t + lane, range.end - 1));
      float ds = 0.0f;
      if (t + lane < range.end && !skips(bands, p, i, j))
        ds = expf(call.scale * dot(q, k + j * call.k.token, call.d_qk) - lse) *
             (dot(d_o, v + j * call.v.token, call.d_v) - delta);
      add_rows(dq, ds, k, j, call.k.token, call.d_qk);
    }
  }
  store_row(dq, call.scale, call.dq.of(row.b, row.h) + i * call.dq.token, call.d_qk);
}

// dk and dv of one key, over the queries of every group that has it.
//   dk = scale sum ds q    dv = sum p d_o
template <class T>
__global__ void attention_backward_key_rows(const __grid_constant__ BandLaunch<T> call) {
  LACUNA_DYNAMIC_SHARED(float, shared);
  const WarpRow row(call.table, call.n, call.batch);
  if (row.head == nullptr) return;
  const int lane = threadIdx.x % 32;
  const int64_t j = row.position, statistics = (row.b * call.n_heads + row.h) * call.n;
  float* const dk = shared + threadIdx.x / 32 * (call.d_qk + call.d_v);
  float* const dv = dk + call.d_qk;
  clear_row(dk, call.d_qk);
  clear_row(dv, call.d_v);
  const T* const q = call.q.of(row.b, row.h);
  const T* const k = call.k.of(row.b, row.h) + j * call.k.token;
  const T* const v = call.v.of(row.b, row.h) + j * call.v.token;
  const T* const d_o = call.d_o.of(row.b, row.h);
  const Band* const bands = call.table.bands + row.head->first;

  for (int p = row.head->begin; p < row.head->end; ++p) {
    const View& view = bands[p].view;
    const Range positions = queries_of(bands, p, j, call.n);
    if (positions.empty()) continue;
    for_each_group_of(view, j, call.n, [&](int64_t group) {
      const Strip queries = view.queries(group);
      const Range range{queries.rank(positions.begin), queries.rank(positions.end)};
      for (int64_t t = range.begin; t < range.end; t += 32) {
        const int64_t i = queries.position(lesser(t + lane, range.end - 1));
        float weight = 0.0f, ds = 0.0f;
        if (t + lane < range.end && !skips(bands, p, i, j)) {
          weight = expf(call.scale * dot(q + i * call.q.token, k, call.d_qk) - call.lse[statistics + i]);
          ds = weight * (dot(d_o + i * call.d_o.token, v, call.d_v) - call.delta[statistics + i]);
        }
        add_rows(dv, weight, d_o, i, call.d_o.token, call.d_v);
        add_rows(dk, ds, q, i, call.q.token, call.d_qk);
      }
    });
  }
  store_row(dk, call.scale, call.dk.of(row.b, row.h) + j * call.dk.token, call.d_qk);
  store_row(dv, 1.0f, call.dv.of(row.b, row.h) + j * call.dv.token, call.d_v);
}

template <class T, class Kernel>
void launch_rows(Stream stream, Kernel kernel, const BandLaunch<T>& call, int64_t floats_per_warp) {
  const int64_t rows = call.batch * call.n * call.table.n_heads;
  launch(stream, kernel, dim3(grid_of(ceil_div(rows, kWarps), "sparse_attention")), dim3(kWarpSize * kWarps),
         static_cast<size_t>(floats_per_warp) * kWarps * sizeof(float), call);
}

}  // namespace

template <class T>
void forward_rows(Stream stream, const BandLaunch<T>& call) {
  launch_rows(stream, attention_forward_rows<T>, call, call.d_v);
}

template <class T>
void backward_query_rows(Stream stream, const BandLaunch<T>& call) {
  launch_rows(stream, attention_backward_query_rows<T>, call, call.d_qk);
}

template <class T>
void backward_key_rows(Stream stream, const BandLaunch<T>& call) {
  launch_rows(stream, attention_backward_key_rows<T>, call, call.d_qk + call.d_v);
}

#define LACUNA_INSTANTIATE(T)                                      \
  template void forward_rows(Stream, const BandLaunch<T>&);        \
  template void backward_query_rows(Stream, const BandLaunch<T>&); \
  template void backward_key_rows(Stream, const BandLaunch<T>&);
LACUNA_INSTANTIATE(float)
LACUNA_INSTANTIATE(__nv_bfloat16)
LACUNA_INSTANTIATE(__half)
#undef LACUNA_INSTANTIATE

}  // namespace lacuna::gpu

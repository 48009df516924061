// Attention of one new position over a DecodeCache on a GPU, in f32.

#include "ops/sparse_attention/decode_kernels.h"

#include <cmath>

#include "ops/sparse_attention/cuda/launches.h"
#include "ops/sparse_attention/cuda/softmax_rows.cuh"
#include "ops/sparse_attention/kernels.h"

namespace lacuna::gpu {
namespace {

constexpr int kWarps = 8;  // of a block

/// The rows of a band in the cache, after those of the head's earlier bands: a ring of `capacity` for every group.
struct Rings {
  int64_t first_row = 0;
  int32_t used = 0, capacity = 0;
};

/// Rows of the heads of a table, in a cache of `rows` rows a sequence.
struct CachedHeads {
  BandTable table;
  Rings rings[kMaxBands];  // of the table's bands
  int64_t first_row[kMaxHeads];
  int64_t rows;
  int n_heads;  // of all tables

  __device__ __forceinline__ int64_t row(int head, int band, int64_t group, int64_t t) const {
    const Rings& r = rings[table.heads[head].first + band];
    return first_row[head] + r.first_row + group * r.capacity + t % r.capacity;
  }
};

struct DecodeCall {
  CachedHeads heads;
  const float *q, *k, *v;  // k, v [batch, rows, width]
  int64_t q_distance;      // from a sequence to the next
  float* o;
  const int64_t* position;
  int d_qk, d_v;
  float scale;
};

// o of one query.
//   grid    a block per head of a sequence
//   warp    every kWarps-th run of 32 keys, a key for each lane
//   shared  o [kWarps, d_v], joined at the end
__global__ void attention_decode_kernel(const __grid_constant__ DecodeCall call) {
  LACUNA_DYNAMIC_SHARED(float, shared);
  LACUNA_SHARED(float, tops, [kWarps]);
  LACUNA_SHARED(float, sums, [kWarps]);
  const BandTable& table = call.heads.table;
  const int index = blockIdx.x % table.n_heads, warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const HeadBands& head = table.heads[index];
  const Band* const bands = table.bands + head.first;
  const int64_t b = blockIdx.x / table.n_heads, bh = b * call.heads.n_heads + head.head, i = *call.position;
  const float* const q = call.q + b * call.q_distance + head.head * call.d_qk;
  const float* const k = call.k + b * call.heads.rows * call.d_qk;
  const float* const v = call.v + b * call.heads.rows * call.d_v;

  RowSoftmax softmax{shared + warp * call.d_v};
  clear_row(softmax.o, call.d_v);
  for (int p = 0; p < head.end; ++p) {
    const int64_t group = i % bands[p].view.residues;
    const Strip keys = bands[p].view.keys(group);
    const Range range = keys_of(bands, p, group, i);
    for (int64_t t = range.begin + warp * kWarpSize; t < range.end; t += kWarps * kWarpSize) {
      const int64_t element = lesser(t + lane, range.end - 1), row = call.heads.row(index, p, group, element);
      const bool has = t + lane < range.end && !skips(bands, p, i, keys.position(element));
      const float s = has ? call.scale * dot(q, k + row * call.d_qk, call.d_qk) : -INFINITY;
      softmax.add(s, row, v, call.d_v, call.d_v);
    }
  }
  const float sum = warp_sum(softmax.sum);
  if (lane == 0) tops[warp] = softmax.top;
  if (lane == 0) sums[warp] = sum;
  __syncthreads();

  float top = -INFINITY, total = 0.0f;
  for (int w = 0; w < kWarps; ++w) top = fmaxf(top, tops[w]);
  for (int w = 0; w < kWarps; ++w)
    if (sums[w] != 0.0f) total += sums[w] * expf(tops[w] - top);
  for (int c = threadIdx.x; c < call.d_v; c += kWarps * kWarpSize) {
    float o = 0.0f;
    for (int w = 0; w < kWarps; ++w)
      if (sums[w] != 0.0f) o += shared[w * call.d_v + c] * expf(tops[w] - top);
    call.o[bh * call.d_v + c] = total == 0.0f ? 0.0f : o / total;
  }
}

struct StoreCall {
  CachedHeads heads;
  const float* x;  // [batch, n_heads * width], sequences x_distance apart
  int64_t x_distance;
  float* cache;  // [batch, rows, width]
  const int64_t* position;
  int64_t n;
  int width;
};

// Copies a position to its rows.
//   grid  a block per head of a sequence
__global__ void store_position_kernel(const __grid_constant__ StoreCall call) {
  const BandTable& table = call.heads.table;
  const int index = blockIdx.x % table.n_heads;
  const HeadBands& head = table.heads[index];
  const int64_t b = blockIdx.x / table.n_heads;
  const float* const x = call.x + b * call.x_distance + head.head * call.width;
  const int64_t position = *call.position;
  for (int p = 0; p < head.end; ++p) {
    const View& view = table.bands[head.first + p].view;
    for_each_group_of(view, position, call.n, [&](int64_t group) {
      const int64_t t = view.keys(group).rank(position);
      if (t >= call.heads.rings[head.first + p].used) return;
      float* const row = call.cache + (b * call.heads.rows + call.heads.row(index, p, group, t)) * call.width;
      for (int c = threadIdx.x; c < call.width; c += blockDim.x) row[c] = x[c];
    });
  }
}

/// The tables of all heads.
std::vector<CachedHeads> cached_heads(const DecodeStores& heads, int64_t n, int64_t rows) {
  AttentionProblem problem;
  problem.n = n;
  problem.n_heads = static_cast<int64_t>(heads.size());
  for (const std::vector<DecodeCache::Store>& stores : heads) {
    std::vector<Part>& parts = problem.heads.emplace_back();
    for (const DecodeCache::Store& store : stores) parts.push_back(store.part);
  }
  std::vector<CachedHeads> all;
  const std::vector<std::vector<BandTable>> passes = passes_of(problem, Cut::head, 1);
  for (const BandTable& table : passes.front()) {
    CachedHeads& cached = all.emplace_back();
    cached.table = table;
    cached.rows = rows;
    cached.n_heads = static_cast<int>(problem.n_heads);
    for (int x = 0; x < table.n_heads; ++x) {
      const std::vector<DecodeCache::Store>& stores = heads[static_cast<size_t>(table.heads[x].head)];
      cached.first_row[x] = stores.front().first_row;
      for (size_t p = 0; p < stores.size(); ++p)
        cached.rings[table.heads[x].first + p] = {stores[p].first_row - stores.front().first_row,
                                                  static_cast<int32_t>(stores[p].used),
                                                  static_cast<int32_t>(stores[p].capacity)};
    }
  }
  return all;
}

__global__ void advance_kernel(int64_t* position) { ++*position; }

static_assert(sizeof(DecodeCall) <= 4096 && sizeof(StoreCall) <= 4096);

}  // namespace

void advance(Stream stream, const Tensor& position) {
  launch(stream, advance_kernel, dim3(1), dim3(1), 0, data<int64_t>(position));
}

void attention_decode(Stream stream, const TensorColumns& q, const Tensor& k_rows, const Tensor& v_rows,
                      const Tensor& position, int64_t n, const DecodeStores& heads, const Tensor& o) {
  const int64_t batch = o.dim(0);
  DecodeCall call{};
  call.q = data<float>(q.tensor) + q.first, call.q_distance = q.row_distance();
  call.k = data<float>(k_rows), call.v = data<float>(v_rows), call.o = data<float>(o);
  call.position = data<int64_t>(position);
  call.d_qk = static_cast<int>(k_rows.dim(2)), call.d_v = static_cast<int>(v_rows.dim(2));
  call.scale = 1.0f / std::sqrt(static_cast<float>(call.d_qk));
  for (const CachedHeads& cached : cached_heads(heads, n, k_rows.dim(1))) {
    call.heads = cached;
    launch(stream, attention_decode_kernel, dim3(grid_of(batch * cached.table.n_heads, "DecodeCache")),
           dim3(kWarps * kWarpSize), static_cast<size_t>(kWarps * call.d_v) * sizeof(float), call);
  }
}

void store_position(Stream stream, const TensorColumns& x, const Tensor& position, int64_t n, const DecodeStores& heads,
                    const Tensor& rows) {
  const int64_t batch = rows.dim(0);
  StoreCall call{};
  call.x = data<float>(x.tensor) + x.first, call.x_distance = x.row_distance(), call.cache = data<float>(rows);
  call.position = data<int64_t>(position), call.n = n;
  call.width = static_cast<int>(rows.dim(2));
  for (const CachedHeads& cached : cached_heads(heads, n, rows.dim(1))) {
    call.heads = cached;
    launch(stream, store_position_kernel, dim3(grid_of(batch * cached.table.n_heads, "DecodeCache")), dim3(64), 0,
           call);
  }
}

}  // namespace lacuna::gpu

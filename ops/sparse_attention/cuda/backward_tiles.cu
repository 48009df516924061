// Backward attention on tensor cores (mma.sync, sm_80 and later): one kernel sums over the keys of queries, one over
// the queries of keys, so that every gradient has one owner and needs no atomics; scores are computed in both.
//
//   p = exp(scale q . k - lse)    ds = p (d_o . v - delta)
//   dq = scale sum ds k           dk = scale sum ds q           dv = sum p d_o

#include "ops/sparse_attention/cuda/tile_kernels.h"
#include "ops/sparse_attention/cuda/tiles.cuh"

namespace lacuna::gpu {
namespace {

/// Adds what row_of(r), r of the 16 rows of a warp's result, holds, divided by the factor that it will be stored with;
/// null for rows that do not exist.
template <int kWidth, class T, class RowOf>
__device__ __forceinline__ void add_rows(float (&y)[kWidth / 8][4], float factor, const RowOf& row_of, int width) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const T* const row = row_of(threadIdx.x % 32 / 4 + 8 * half);
    if (row == nullptr) continue;
#pragma unroll
    for (int c = 0; c < kWidth / 8; ++c) {
      const int column = c * 8 + 2 * (threadIdx.x % 4);
      if (column >= width) continue;
      const float2 before = unpack<T>(*reinterpret_cast<const uint32_t*>(row + column));
      y[c][2 * half] += before.x / factor;
      y[c][2 * half + 1] += before.y / factor;
    }
  }
}

// dq of the bands that share the groups of a head, and delta.
//   grid, warp  as attention_forward_tiles
//   shared      q [kTile][kQk], d_o [kTile][kV], two each of k [kTile][kQk] and v [kTile][kV]
//   precision   products of T in f32; ds rounded to T for its product
template <class T, int kQk, int kV>
__global__ void __launch_bounds__(kThreads) attention_backward_query_tiles(const __grid_constant__ BandLaunch<T> call) {
  LACUNA_DYNAMIC_SHARED(T, shared);
  LACUNA_SHARED(TileRanges, ranges, [1]);
  T* const q = shared;               // [kTile, kQk]
  T* const d_o = q + kTile * kQk;    // [kTile, kV]
  T* const k = d_o + kTile * kV;     // [2, kTile, kQk]
  T* const v = k + 2 * kTile * kQk;  // [2, kTile, kV]
  const TileOfBlock tile(call.table, call.n,
                         [&](const View& view, int64_t group) { return view.queries(group).rank(call.n); });
  if (tile.count == 0) return;

  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * kChunk;
  const Strip queries = tile.bands[tile.begin].view.queries(tile.group);
  const T* const k_head = call.k.of(tile.batch, tile.head);
  const T* const v_head = call.v.of(tile.batch, tile.head);
  load_tile<kQk>(q, call.q.of(tile.batch, tile.head), call.q.token, call.d_qk, StripPositions(queries), tile.row,
                 tile.row + tile.count);
  load_tile<kV>(d_o, call.d_o.of(tile.batch, tile.head), call.d_o.token, call.d_v, StripPositions(queries), tile.row,
                tile.row + tile.count);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();

  // delta = sum d_o * o
  const int64_t statistics = (tile.batch * call.n_heads + tile.head) * call.n;
  float exponent[2] = {}, delta[2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = warp_row + lane / 4 + 8 * half;
    const bool exists = r < tile.count;
    const int64_t i = queries.position(tile.row + (exists ? r : 0));
    exponent[half] = exponent_of(call.lse[statistics + i]);
    if (call.joins) {
      delta[half] = call.delta[statistics + i];
      continue;
    }
    const T* const o_row = call.o.of(tile.batch, tile.head) + i * call.o.token;
    float sum = 0.0f;
    for (int c = lane % 4; c * 8 < call.d_v; c += 4)
      sum += dot_of_eight<T>(*reinterpret_cast<const uint4*>(o_row + c * 8),
                             *reinterpret_cast<const uint4*>(chunk_of<kV>(d_o, r, c)));
    delta[half] = sum_of_row(sum);
    if (exists && lane % 4 == 0) call.delta[statistics + i] = delta[half];
  }

  const float scale = call.scale * kLog2e;
  float dq[kQk / 8][4] = {};
  for (int band = tile.begin; band < tile.end; ++band) {
    const Strip keys = tile.bands[band].view.keys(tile.group);
    const StripPositions key_positions(keys);
    const bool scattered = tile.bands[band].scattered_before != 0;
    fill_ranges(ranges[0], tile.count,
                [&](int r) { return keys_of(tile.bands, band, tile.group, queries.position(tile.row + r)); });
    __syncthreads();
    const WarpRanges met(ranges[0]);
    const int begin = ranges[0].begin[0], end = ranges[0].end[kTile - 1];
    const auto load = [&](int t, int buffer) {
      load_tile<kQk>(k + buffer * kTile * kQk, k_head, call.k.token, call.d_qk, key_positions, t, end);
      load_tile<kV>(v + buffer * kTile * kV, v_head, call.v.token, call.d_v, key_positions, t, end);
      cp_async_commit();
    };
    if (begin < end) load(begin, 0);
    for (int t = begin, buffer = 0; t < end; t += kTile, buffer ^= 1) {
      if (t + kTile < end) {
        load(t + kTile, buffer ^ 1);
        cp_async_wait<1>();
      } else {
        cp_async_wait<0>();
      }
      __syncthreads();

      const unsigned chunks = met.met(t);
      if (chunks != 0) {
        const uint32_t skipped = !scattered ? 0 : skipped_bits(kTile, [&](int half, int column) {
          return met.has(half, t + column) &&
                 skips(tile.bands, band, queries.position(tile.row + warp_row + lane / 4 + 8 * half),
                       keys.position(t + column));
        });
        float s[kTile / 8][4] = {}, dp[kTile / 8][4] = {};
        multiply_rows<kQk, kTile / kChunk>(s, q, warp_row, k + buffer * kTile * kQk, 0, chunks);   // s = q k^T
        multiply_rows<kV, kTile / kChunk>(dp, d_o, warp_row, v + buffer * kTile * kV, 0, chunks);  // dp = d_o v^T
#pragma unroll
        for (int c = 0; c < kTile / 8; ++c)
          if (chunks >> c / 2 & 1) {
#pragma unroll
            for (int e = 0; e < 4; ++e)  // ds = p (dp - delta)
              s[c][e] = exp2_approx(s[c][e] * scale - exponent[e / 2]) * (dp[c][e] - delta[e / 2]);
          }
        if (scattered || !met.whole(t, kTile)) mask_scores(s, met, t, skipped, 0.0f);
#pragma unroll
        for (int x = 0; x < kTile / kChunk; ++x)  // dq += ds k
          if (chunks >> x & 1) add_product<kQk>(dq, s[2 * x], s[2 * x + 1], k + buffer * kTile * kQk, x * kChunk);
      }
      __syncthreads();  // before the tile, or the ranges, are filled anew
    }
    if (begin >= end) __syncthreads();
  }

  const auto row_of = [&](int r) {
    r += warp_row;
    return r < tile.count ? call.dq.of(tile.batch, tile.head) + queries.position(tile.row + r) * call.dq.token
                          : nullptr;
  };
  if (call.joins) add_rows<kQk, T>(dq, call.scale, row_of, call.d_qk);
  const float factor[2] = {call.scale, call.scale};
  store_rows<kQk>(dq, factor, q + warp_row * kQk, call.d_qk, row_of);
}

// dk and dv of one band of a head.
//   grid       a block per tile of kTile keys of a group
//   warp       16 keys; every 16 queries that meet none of them are skipped
//   lane       scores are transposed, s^T = k q^T: p and ds are then in registers what the products with d_o and q take
//   shared     k [kTile][kQk], v [kTile][kV], two each of q [kTile][kQk], d_o [kTile][kV], exponent and delta [kTile]
//   precision  products of T in f32; p and ds rounded to T for theirs
template <class T, int kQk, int kV>
__global__ void __launch_bounds__(kThreads) attention_backward_key_tiles(const __grid_constant__ BandLaunch<T> call) {
  // Queries whose scores are in registers at once: fewer when the sums take most of the registers.
  constexpr int kQueries = kQk + kV > 192 ? 32 : kTile;
  LACUNA_DYNAMIC_SHARED(T, shared);
  LACUNA_SHARED(TileRanges, ranges, [1]);
  LACUNA_SHARED(float, exponent, [2][kTile]);
  LACUNA_SHARED(float, delta, [2][kTile]);
  T* const k = shared;                 // [kTile, kQk]
  T* const v = k + kTile * kQk;        // [kTile, kV]
  T* const q = v + kTile * kV;         // [2, kTile, kQk]
  T* const d_o = q + 2 * kTile * kQk;  // [2, kTile, kV]
  const TileOfBlock tile(call.table, call.n,
                         [&](const View& view, int64_t group) { return view.keys(group).rank(call.n); });
  if (tile.count == 0) return;

  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * kChunk, band = tile.begin;
  const View& view = tile.bands[band].view;
  const Strip keys = view.keys(tile.group), queries = view.queries(tile.group);
  const bool scattered = tile.bands[band].scattered_before != 0;
  load_tile<kQk>(k, call.k.of(tile.batch, tile.head), call.k.token, call.d_qk, StripPositions(keys), tile.row,
                 tile.row + tile.count);
  load_tile<kV>(v, call.v.of(tile.batch, tile.head), call.v.token, call.d_v, StripPositions(keys), tile.row,
                tile.row + tile.count);
  cp_async_commit();
  fill_ranges(ranges[0], tile.count, [&](int r) {
    const Range positions = queries_of(tile.bands, band, keys.position(tile.row + r), call.n);
    return Range{queries.rank(positions.begin), queries.rank(positions.end)};
  });
  __syncthreads();
  const WarpRanges met(ranges[0]);
  const int begin = ranges[0].begin[0], end = ranges[0].end[kTile - 1];
  if (begin >= end && call.joins) {
    cp_async_wait<0>();
    return;
  }

  const StripPositions query_positions(queries);
  const T* const q_head = call.q.of(tile.batch, tile.head);
  const T* const d_o_head = call.d_o.of(tile.batch, tile.head);
  const int64_t statistics = (tile.batch * call.n_heads + tile.head) * call.n;
  const auto load = [&](int t, int buffer) {
    load_tile<kQk>(q + buffer * kTile * kQk, q_head, call.q.token, call.d_qk, query_positions, t, end);
    load_tile<kV>(d_o + buffer * kTile * kV, d_o_head, call.d_o.token, call.d_v, query_positions, t, end);
    if (threadIdx.x < kTile) {
      const int64_t i = statistics + queries.position(lesser(t + threadIdx.x, end - 1));
      cp_async<4>(&exponent[buffer][threadIdx.x], call.lse + i, true);
      cp_async<4>(&delta[buffer][threadIdx.x], call.delta + i, true);
    }
    cp_async_commit();
  };
  const float scale = call.scale * kLog2e;
  float dk[kQk / 8][4] = {}, dv[kV / 8][4] = {};
  if (begin < end) load(begin, 0);
  for (int t = begin, buffer = 0; t < end; t += kTile, buffer ^= 1) {
    if (t + kTile < end) {
      load(t + kTile, buffer ^ 1);
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    if (threadIdx.x < kTile) exponent[buffer][threadIdx.x] = exponent_of(exponent[buffer][threadIdx.x]);
    __syncthreads();

    T* const q_tile = q + buffer * kTile * kQk;
    T* const d_o_tile = d_o + buffer * kTile * kV;
#pragma unroll
    for (int part = 0; part < kTile; part += kQueries) {
      const unsigned all = (1u << kQueries / kChunk) - 1, chunks = met.met(t) >> part / kChunk & all;
      if (chunks == 0) continue;
      const uint32_t skipped = !scattered ? 0 : skipped_bits(kQueries, [&](int half, int column) {
        return met.has(half, t + part + column) && skips(tile.bands, band, queries.position(t + part + column),
                                                         keys.position(tile.row + warp_row + lane / 4 + 8 * half));
      });
      float s[kQueries / 8][4] = {}, dp[kQueries / 8][4] = {};
      multiply_rows<kQk, kQueries / kChunk>(s, k, warp_row, q_tile, part, chunks);    // s^T = k q^T
      multiply_rows<kV, kQueries / kChunk>(dp, v, warp_row, d_o_tile, part, chunks);  // dp^T = v d_o^T
#pragma unroll
      for (int c = 0; c < kQueries / 8; ++c)
        if (chunks >> c / 2 & 1) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int column = part + c * 8 + 2 * (lane % 4) + e % 2;
            s[c][e] = exp2_approx(s[c][e] * scale - exponent[buffer][column]);
            dp[c][e] = s[c][e] * (dp[c][e] - delta[buffer][column]);  // ds
          }
        }
      if (scattered || !met.whole(t + part, kQueries)) {
        mask_scores(s, met, t + part, skipped, 0.0f);
        mask_scores(dp, met, t + part, skipped, 0.0f);
      }
#pragma unroll
      for (int x = 0; x < kQueries / kChunk; ++x)
        if (chunks >> x & 1) {
          add_product<kV>(dv, s[2 * x], s[2 * x + 1], d_o_tile, part + x * kChunk);   // dv += p^T d_o
          add_product<kQk>(dk, dp[2 * x], dp[2 * x + 1], q_tile, part + x * kChunk);  // dk += ds^T q
        }
    }
    __syncthreads();  // before the tiles are filled anew
  }
  cp_async_wait<0>();
  __syncthreads();

  const auto row_of = [&](const HeadRows<T>& gradient) {
    return [&, first = gradient.of(tile.batch, tile.head)](int r) {
      r += warp_row;
      return r < tile.count ? first + keys.position(tile.row + r) * gradient.token : nullptr;
    };
  };
  if (call.joins) {
    add_rows<kQk, T>(dk, call.scale, row_of(call.dk), call.d_qk);
    add_rows<kV, T>(dv, 1.0f, row_of(call.dv), call.d_v);
  }
  const float dk_factor[2] = {call.scale, call.scale}, dv_factor[2] = {1.0f, 1.0f};
  store_rows<kQk>(dk, dk_factor, k + warp_row * kQk, call.d_qk, row_of(call.dk));
  store_rows<kV>(dv, dv_factor, v + warp_row * kV, call.d_v, row_of(call.dv));
}

}  // namespace

template <class T>
void backward_query_tiles(Stream stream, const BandLaunch<T>& call) {
  with_widths(call.d_qk, call.d_v, [&]<int kQk, int kV>() {
    launch_tiles(stream, attention_backward_query_tiles<T, kQk, kV>, call, sizeof(T) * kTile * 3 * (kQk + kV));
  });
}

template <class T>
void backward_key_tiles(Stream stream, const BandLaunch<T>& call) {
  with_widths(call.d_qk, call.d_v, [&]<int kQk, int kV>() {
    launch_tiles(stream, attention_backward_key_tiles<T, kQk, kV>, call, sizeof(T) * kTile * 3 * (kQk + kV));
  });
}

template void backward_query_tiles(Stream, const BandLaunch<__nv_bfloat16>&);
template void backward_query_tiles(Stream, const BandLaunch<__half>&);
template void backward_key_tiles(Stream, const BandLaunch<__nv_bfloat16>&);
template void backward_key_tiles(Stream, const BandLaunch<__half>&);

}  // namespace lacuna::gpu

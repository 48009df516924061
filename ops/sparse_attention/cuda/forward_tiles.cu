// Forward attention on tensor cores (mma.sync, sm_80 and later).

#include "ops/sparse_attention/cuda/tile_kernels.h"
#include "ops/sparse_attention/cuda/tiles.cuh"

namespace lacuna::gpu {
namespace {

// o = softmax(q k^T / sqrt(d_qk)) v and its log-sum-exp, of the bands that share the groups of a head.
//   grid       a block per tile of kTile queries of a group
//   warp       16 queries; every 16 keys that none of them meets are skipped, and masks are applied only where needed
//   shared     q [kTile][kQk], two each of k [kTile][kQk] and v [kTile][kV]: the next is copied while one is used
//   precision  products of T in f32; softmax in f32; weights rounded to T for the second product
//   joins      with `joins`, o and lse hold the result of earlier bands, which these join in one softmax
template <class T, int kQk, int kV>
__global__ void __launch_bounds__(kThreads, kQk + kV > 192 ? 2 : 3)
    attention_forward_tiles(const __grid_constant__ BandLaunch<T> call) {
  LACUNA_DYNAMIC_SHARED(T, shared);
  LACUNA_SHARED(TileRanges, ranges, [1]);
  T* const q = shared;               // [kTile, kQk]
  T* const k = q + kTile * kQk;      // [2, kTile, kQk]
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
  cp_async_commit();

  const float scale = call.scale * kLog2e;
  float o[kV / 8][4] = {};
  float top[2] = {-INFINITY, -INFINITY};  // largest q . k of the lane's rows so far
  float sum[2] = {0.0f, 0.0f};            // of 2^(scale (q . k - top)), this lane's columns alone

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
        const bool whole = !scattered && met.whole(t, kTile);
        const uint32_t skipped = !scattered ? 0 : skipped_bits(kTile, [&](int half, int column) {
          return met.has(half, t + column) &&
                 skips(tile.bands, band, queries.position(tile.row + warp_row + lane / 4 + 8 * half),
                       keys.position(t + column));
        });
        // s = q k^T
        float s[kTile / 8][4] = {};
        multiply_rows<kQk, kTile / kChunk>(s, q, warp_row, k + buffer * kTile * kQk, 0, chunks);

        if (!whole) mask_scores(s, met, t, skipped, -INFINITY);
        float largest[2] = {top[0], top[1]};
#pragma unroll
        for (int c = 0; c < kTile / 8; ++c)
#pragma unroll
          for (int e = 0; e < 4; ++e) largest[e / 2] = fmaxf(largest[e / 2], s[c][e]);

        // p = 2^(scale (s - top))
        float base[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          largest[half] = largest_of_row(largest[half]);
          base[half] = largest[half] == -INFINITY ? 0.0f : largest[half] * scale;
          const float shrink = exp2_approx(top[half] * scale - base[half]);
          top[half] = largest[half];
          sum[half] *= shrink;
#pragma unroll
          for (int c = 0; c < kV / 8; ++c) {
            o[c][2 * half] *= shrink;
            o[c][2 * half + 1] *= shrink;
          }
        }
#pragma unroll
        for (int c = 0; c < kTile / 8; ++c)
          if (chunks >> c / 2 & 1) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              s[c][e] = exp2_approx(s[c][e] * scale - base[e / 2]);
              sum[e / 2] += s[c][e];
            }
          }

          // o += p v
#pragma unroll
        for (int x = 0; x < kTile / kChunk; ++x)
          if (chunks >> x & 1) add_product<kV>(o, s[2 * x], s[2 * x + 1], v + buffer * kTile * kV, x * kChunk);
      }
      __syncthreads();  // before the tile, or the ranges, are filled anew
    }
    if (begin >= end) __syncthreads();
  }
  cp_async_wait<0>();
  __syncthreads();

  float factor[2], lse[2], earlier[2] = {-INFINITY, -INFINITY};
  int64_t position[2];
  float* const lse_rows = call.lse + (tile.batch * call.n_heads + tile.head) * call.n;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = warp_row + lane / 4 + 8 * half;
    position[half] = r < tile.count ? queries.position(tile.row + r) : -1;
    const float total = sum_of_row(sum[half]);
    factor[half] = total == 0.0f ? 0.0f : 1.0f / total;
    lse[half] = total == 0.0f ? -INFINITY : (top[half] * scale + log2f(total)) * kLn2;
    if (call.joins && position[half] >= 0) earlier[half] = lse_rows[position[half]];
  }
  __syncwarp();  // before a neighbour writes the earlier log-sum-exp over
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (position[half] < 0) continue;
    if (earlier[half] != -INFINITY) {
      const float larger = fmaxf(lse[half], earlier[half]);
      const float joint = larger + kLn2 * log2f(exp2_approx((lse[half] - larger) * kLog2e) +
                                                exp2_approx((earlier[half] - larger) * kLog2e));
      const float ours = factor[half] * exp2_approx((lse[half] - joint) * kLog2e);
      const float theirs = exp2_approx((earlier[half] - joint) * kLog2e);
      const T* const o_row = call.o.of(tile.batch, tile.head) + position[half] * call.o.token;
#pragma unroll
      for (int c = 0; c < kV / 8; ++c) {
        const int column = c * 8 + 2 * (lane % 4);
        if (column >= call.d_v) continue;
        const float2 before = unpack<T>(*reinterpret_cast<const uint32_t*>(o_row + column));
        o[c][2 * half] = ours * o[c][2 * half] + theirs * before.x;
        o[c][2 * half + 1] = ours * o[c][2 * half + 1] + theirs * before.y;
      }
      factor[half] = 1.0f;
      lse[half] = joint;
    }
    if (lane % 4 == 0) lse_rows[position[half]] = lse[half];
  }
  store_rows<kV>(o, factor, q + warp_row * kV, call.d_v, [&](int r) {
    r += warp_row;
    return r < tile.count ? call.o.of(tile.batch, tile.head) + queries.position(tile.row + r) * call.o.token : nullptr;
  });
}

}  // namespace

template <class T>
void forward_tiles(Stream stream, const BandLaunch<T>& call) {
  with_widths(call.d_qk, call.d_v, [&]<int kQk, int kV>() {
    launch_tiles(stream, attention_forward_tiles<T, kQk, kV>, call, sizeof(T) * kTile * (3 * kQk + 2 * kV));
  });
}

template void forward_tiles(Stream, const BandLaunch<__nv_bfloat16>&);
template void forward_tiles(Stream, const BandLaunch<__half>&);

}  // namespace lacuna::gpu

// Backward attention of sliding windows (sliding.h), on tensor cores (mma.sync, sm_80 and later): a block marches over
// the rows of a group, reads every tensor once, and gives all gradients, each written once.
//
//   p = exp(scale q . k - lse)    ds = p (d_o . v - delta)        delta = sum d_o * o
//   dq = scale sum ds k           dk = scale sum ds q             dv = sum p d_o

#include <optional>

#include "ops/sparse_attention/cuda/tile_kernels.h"
#include "ops/sparse_attention/cuda/tiles.cuh"

namespace lacuna::gpu {
namespace {

constexpr int kRows = kMaxReach;  // of a tile: its queries meet keys of itself and of the tile before, and no others
constexpr int kChunks = kRows / kChunk;
constexpr int kBlock = kChunks * 32;  // threads: a warp for 16 rows
constexpr int kPair = kChunk * kChunk;
constexpr int kPairsOfTile = kChunks * (kChunks + 1) / 2;  // of chunks of queries and keys that may meet, in either tile

/// The rows that a block owns.
struct SegmentOfBlock {
  int64_t head, batch, group;
  int rows;              // of the group
  int begin, end, tiles;  // its tiles, and how many the group has

  /// Neighbouring blocks have the same rows of neighbouring heads, then of neighbouring groups: they share lines of
  /// memory.
  template <class T>
  __device__ __forceinline__ explicit SegmentOfBlock(const SlidingLaunch<T>& call) {
    const SlidingTable& table = call.table;
    const int64_t groups = table.view.groups(call.n), x = blockIdx.x / table.n_heads;
    head = table.heads[blockIdx.x % table.n_heads];
    group = x % groups;
    rows = static_cast<int>(table.view.queries(group).rank(call.n));
    tiles = (rows + kRows - 1) / kRows;
    const int64_t segments = segments_of(call);
    begin = static_cast<int>(x / groups % segments * call.segment);
    end = static_cast<int>(lesser(tiles, begin + call.segment));
    batch = x / groups / segments;
  }

  /// Of the longest group.
  template <class T>
  LACUNA_HOST_DEVICE static int64_t segments_of(const SlidingLaunch<T>& call) {
    const int64_t tiles = (call.table.view.queries(0).rank(call.n) + kRows - 1) / kRows;
    return (tiles + call.segment - 1) / call.segment;
  }
};

/// What a block knows of the queries of a tile; in shared memory.
struct TileQueries {
  int begin[kRows], end[kRows];  // the rows of the group that they meet as keys; neither falls from row to row
  float exponent[kRows], delta[kRows];

  /// Whether any query of chunk y meets a key of the 16 rows from `key` on, and whether all meet all.
  __device__ __forceinline__ bool meets(int y, int key) const {
    return begin[y * kChunk] < key + kChunk && end[y * kChunk + kChunk - 1] > key;
  }
  __device__ __forceinline__ bool meets_wholly(int y, int key) const {
    return begin[y * kChunk + kChunk - 1] <= key && end[y * kChunk] >= key + kChunk;
  }
};

/// What a thread fetches of a tile of queries before its turn: pieces of o, four lanes sharing a row, and its lse.
template <int kV>
struct FetchedQueries {
  static constexpr int kRowsOfThread = 4 * kRows / kBlock;
  uint4 o[kRowsOfThread][kV / 32];
  float lse[kRowsOfThread];

  __device__ __forceinline__ static int row(int x) { return (threadIdx.x + x * kBlock) / 4; }
};

//   grid       a block for a segment of tiles of a group: it owns their keys and queries. It begins one tile earlier, for
//              the keys that its first queries meet, and ends with the queries of one tile more, which meet its last keys
//   warp       16 keys of a tile against the queries of the tile and of the next one that meet them: 9 chunks of 16 at
//              most; then, for dq, 16 queries against the keys of the tile
//   lane       scores are transposed, s^T = k q^T: p and ds are then in registers what the products with d_o and q
//              take; ds goes to dq through shared memory
//   shared     one or two k [kRows][kQk] and v [kRows][kV]; two or three q [kRows][kQk] and d_o [kRows][kV]; ds^T
//              [2 * kPairsOfTile][16][16]; all gradients leave through the place of v
//   precision  products of T in f32; p and ds rounded to T for theirs
template <class T, int kQk, int kV>
__global__ void __launch_bounds__(kBlock, kQk == 32 ? 2 : 1)
    attention_backward_sliding(const __grid_constant__ SlidingLaunch<T> call) {
  constexpr int kPlace = kRows * (kQk + kV);  // numbers of k and v, or q and d_o, of a tile
  LACUNA_DYNAMIC_SHARED(T, shared);
  LACUNA_SHARED(TileQueries, tile_queries, [2]);
  const int key_places = call.ahead ? 2 : 1, query_places = call.ahead ? 3 : 2;
  T* const ds = shared + (key_places + query_places) * kPlace;
  const auto k_of = [&](int tile) { return shared + tile % key_places * kPlace; };  // and v after it
  const auto q_of = [&](int tile) { return shared + (key_places + tile % query_places) * kPlace; };  // and d_o

  const SegmentOfBlock segment(call);
  if (segment.begin >= segment.end) return;
  const View& view = call.table.view;
  const Strip positions = view.queries(segment.group);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto load = [&](T* to, const HeadRows<const T>& left, const HeadRows<const T>& right, int tile) {
    load_tile<kQk, kRows>(to, left.of(segment.batch, segment.head), left.token, call.d_qk, StripPositions(positions),
                          tile * kRows, segment.rows);
    load_tile<kV, kRows>(to + kRows * kQk, right.of(segment.batch, segment.head), right.token, call.d_v,
                         StripPositions(positions), tile * kRows, segment.rows);
  };
  const auto load_keys = [&](int tile) {
    if (tile < segment.end) load(k_of(tile), call.k, call.v, tile);
  };
  const auto load_queries = [&](int tile) {
    if (tile < segment.tiles && tile <= segment.end) load(q_of(tile), call.q, call.d_o, tile);
  };

  FetchedQueries<kV> fetched;
  const auto fetch = [&](int tile) {
    const T* const o = call.o.of(segment.batch, segment.head);
    const float* const lse = call.lse + (segment.batch * call.n_heads + segment.head) * call.n;
#pragma unroll
    for (int x = 0; x < fetched.kRowsOfThread; ++x) {
      const int row = tile * kRows + fetched.row(x);
      const bool exists = row < segment.rows;
      const int64_t position = positions.position(exists ? row : 0);
      fetched.lse[x] = exists ? lse[position] : -INFINITY;
#pragma unroll
      for (int c = 0; c < kV / 32; ++c) {
        const int column = (c * 4 + lane % 4) * 8;
        fetched.o[x][c] = uint4{};
        if (exists && column < call.d_v)
          fetched.o[x][c] = *reinterpret_cast<const uint4*>(o + position * call.o.token + column);
      }
    }
  };
  const auto prepare = [&](int tile) {  // fetched before; d_o is there
    TileQueries& at = tile_queries[tile % 2];
    T* const d_o = q_of(tile) + kRows * kQk;
#pragma unroll
    for (int x = 0; x < fetched.kRowsOfThread; ++x) {
      const int r = fetched.row(x);
      float sum = 0.0f;
#pragma unroll
      for (int c = 0; c < kV / 32; ++c)
        sum += dot_of_eight<T>(fetched.o[x][c],
                               *reinterpret_cast<const uint4*>(chunk_of<kV>(d_o, r, c * 4 + lane % 4)));
      sum = sum_of_row(sum);
      if (lane % 4 == 0) at.delta[r] = sum, at.exponent[r] = exponent_of(fetched.lse[x]);
    }
    if (threadIdx.x >= kRows) return;
    const int row = tile * kRows + threadIdx.x, last = segment.rows - 1;
    const Range met = rows_met(view, segment.group, positions.position(row < last ? row : last));
    at.begin[threadIdx.x] = static_cast<int>(row <= last ? met.begin : met.end);
    at.end[threadIdx.x] = static_cast<int>(met.end);
  };

  const auto row_of = [&](const HeadRows<T>& gradient, int tile) {
    return [&, tile, head = gradient.of(segment.batch, segment.head)](int r) {
      const int row = tile * kRows + warp * kChunk + r;
      return row < segment.rows ? head + positions.position(row) * gradient.token : nullptr;
    };
  };
  const auto pair_of = [&](bool next, int y, int x) {  // the place of ds of query chunk y and key chunk x
    const int longer = next ? x : y, shorter = next ? y : x;
    return ds + ((next ? kPairsOfTile : 0) + longer * (longer + 1) / 2 + shorter) * kPair;
  };
  const float scale = call.scale * kLog2e;
  const float of_scores[2] = {call.scale, call.scale}, of_values[2] = {1.0f, 1.0f};

  const int first = segment.begin == 0 ? 0 : segment.begin - 1;
  load(k_of(first), call.k, call.v, first);
  if (first == segment.begin) load_queries(first);
  load_queries(first + 1);
  cp_async_commit();
  if (first == segment.begin) {
    fetch(first);
    cp_async_wait<0>();
    __syncthreads();
    prepare(first);
  }
  if (first + 1 < segment.tiles) fetch(first + 1);

  float dq[kQk / 8][4] = {};  // of the tile, what the keys of the tile before gave
#pragma unroll 1
  for (int tile = first; tile < segment.end; ++tile) {
    const bool owned = tile >= segment.begin, next_owned = tile + 1 < segment.end;
    cp_async_wait<0>();
    __syncthreads();  // all that was asked for is there, and nobody needs what is overwritten below
    if (tile + 1 < segment.tiles) prepare(tile + 1);
    if (call.ahead) {
      load_keys(tile + 1);
      if (next_owned) load_queries(tile + 2);
      cp_async_commit();
    }
    __syncthreads();

    T* const k = k_of(tile);
    T* const v = k + kRows * kQk;
    {
      const int key = tile * kRows + warp * kChunk;
      float dk[kQk / 8][4] = {}, dv[kV / 8][4] = {};
#pragma unroll 1
      for (int next = owned ? 0 : 1; next < (tile + 1 < segment.tiles ? 2 : 1); ++next) {
        const TileQueries& at = tile_queries[(tile + next) % 2];
        T* const q = q_of(tile + next);
        T* const d_o = q + kRows * kQk;
        constexpr int kStep = kQk + kV == 128 ? 2 : 1;  // chunks of queries at once, as registers allow
        const int last = next ? warp : kChunks - 1;
#pragma unroll 1
        for (int y0 = next ? 0 : warp; y0 <= last; y0 += kStep) {
          unsigned met = 0;
          for (int y = 0; y < kStep; ++y)
            if (y0 + y <= last && at.meets(y0 + y, key)) met |= 1u << y;
          if (met == 0) continue;
          float s[2 * kStep][4] = {}, dp[2 * kStep][4] = {};
          multiply_rows<kQk, kStep>(s, k, warp * kChunk, q, y0 * kChunk, met);    // s^T = k q^T
          multiply_rows<kV, kStep>(dp, v, warp * kChunk, d_o, y0 * kChunk, met);  // dp^T = v d_o^T
#pragma unroll
          for (int y = 0; y < kStep; ++y)
            if (met >> y & 1) {
              const auto query_of = [&](int c, int e) { return y0 * kChunk + c * 8 + 2 * (lane % 4) + e % 2; };
#pragma unroll
              for (int c = 2 * y; c < 2 * y + 2; ++c)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                  const int query = query_of(c, e);
                  s[c][e] = exp2_approx(s[c][e] * scale - at.exponent[query]);
                  dp[c][e] = s[c][e] * (dp[c][e] - at.delta[query]);  // ds
                }
              if (!at.meets_wholly(y0 + y, key)) {
#pragma unroll
                for (int c = 2 * y; c < 2 * y + 2; ++c)
#pragma unroll
                  for (int e = 0; e < 4; ++e) {
                    const int query = query_of(c, e), j = key + lane / 4 + 8 * (e / 2);
                    if (j < at.begin[query] || at.end[query] <= j) s[c][e] = dp[c][e] = 0.0f;
                  }
              }
              uint32_t p_rounded[4], ds_rounded[4];
              round_product<T>(p_rounded, s[2 * y], s[2 * y + 1]);
              round_product<T>(ds_rounded, dp[2 * y], dp[2 * y + 1]);
              T* const pair = pair_of(next, y0 + y, warp);
#pragma unroll
              for (int i = 0; i < 4; ++i)
                *reinterpret_cast<uint32_t*>(chunk_of<kChunk>(pair, lane / 4 + i % 2 * 8, i / 2) + 2 * (lane % 4)) =
                    ds_rounded[i];
              if (!owned) continue;
              add_product<kV>(dv, p_rounded, d_o, (y0 + y) * kChunk);  // dv += p^T d_o
              add_product<kQk>(dk, ds_rounded, q, (y0 + y) * kChunk);  // dk += ds^T q
            }
        }
      }
      if (owned) {
        T* const staging = v + warp * kChunk * kV;
        store_rows<kV>(dv, of_values, staging, call.d_v, row_of(call.dv, tile));
        store_rows<kQk>(dk, of_scores, staging, call.d_qk, row_of(call.dk, tile));
      }
    }
    __syncthreads();
    if (next_owned) {
      if (!call.ahead) load_queries(tile + 2);
      cp_async_commit();
      if (tile + 2 < segment.tiles) fetch(tile + 2);
    }

    const auto add_to_dq = [&](bool next, int begin, int end) {  // dq += ds k
      const TileQueries& at = tile_queries[(tile + next) % 2];
#pragma unroll 1
      for (int x = begin; x < end; ++x) {
        if (!at.meets(warp, tile * kRows + x * kChunk)) continue;
        uint32_t ds_rows[4];
        ldmatrix_x4_trans(ds_rows, chunk_of<kChunk>(pair_of(next, warp, x), lane % 8 + lane / 16 * 8, lane / 8 % 2));
        add_product<kQk>(dq, ds_rows, k, x * kChunk);
      }
    };
    if (owned) {
      add_to_dq(false, 0, warp + 1);
      store_rows<kQk>(dq, of_scores, v + warp * kChunk * kV, call.d_qk, row_of(call.dq, tile));
#pragma unroll
      for (int c = 0; c < kQk / 8; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e) dq[c][e] = 0.0f;
    }
    if (next_owned) add_to_dq(true, warp, kChunks);
    if (!call.ahead && next_owned) {
      __syncthreads();  // before the keys are overwritten
      load_keys(tile + 1);
      cp_async_commit();
    }
  }
}

constexpr size_t sliding_bytes(int width_qk, int width_v, bool ahead) {
  return sizeof(uint16_t) * ((ahead ? 5 : 3) * kRows * (width_qk + width_v) + 2 * kPairsOfTile * kPair);
}

/// How a block gets the most out of the shared memory of a multiprocessor; nothing when it is too little.
std::optional<bool> ahead_of(Device device, int width_qk, int width_v) {
  constexpr size_t kStatic = 2 * sizeof(TileQueries) + 1024;  // and what CUDA reserves
  const auto memory = static_cast<size_t>(properties(device).shared_bytes);
  const auto fits = [&](size_t blocks, bool ahead) {
    return blocks * (sliding_bytes(width_qk, width_v, ahead) + kStatic) <= memory;
  };
  if (!fits(2, false) && fits(1, true)) return true;
  return fits(1, false) ? std::optional(false) : std::nullopt;
}

}  // namespace

bool sliding_fits(Device device, int d_qk, int d_v) {
  bool fits = false;
  with_widths(d_qk, d_v, [&]<int kQk, int kV>() { fits = kQk <= 64 && ahead_of(device, kQk, kV).has_value(); });
  return fits;
}

template <class T>
void backward_sliding(Stream stream, const SlidingLaunch<T>& call) {
  with_widths(call.d_qk, call.d_v, [&]<int kQk, int kV>() {
    if constexpr (kQk <= 64) {
      SlidingLaunch<T> launched = call;
      launched.ahead = *ahead_of(stream.device, kQk, kV);
      const int64_t sequences = call.batch * call.table.n_heads * call.table.view.groups(call.n);
      // Enough blocks for the largest GPUs, but no segments so short that what two of them compute counts.
      constexpr int64_t kBlocks = 1024, kShortest = 4, kLongest = 16;
      launched.segment = kLongest;
      while (launched.segment > kShortest && sequences * SegmentOfBlock::segments_of(launched) < kBlocks)
        launched.segment /= 2;
      launch(stream, attention_backward_sliding<T, kQk, kV>,
             dim3(grid_of(sequences * SegmentOfBlock::segments_of(launched), "sparse_attention")), dim3(kBlock),
             sliding_bytes(kQk, kV, launched.ahead), launched);
    }
  });
}

template void backward_sliding(Stream, const SlidingLaunch<__nv_bfloat16>&);
template void backward_sliding(Stream, const SlidingLaunch<__half>&);

}  // namespace lacuna::gpu

// Attention of patterns that fall apart into columns (columns.h), on tensor cores (mma.sync, sm_80 and later). A block
// has all queries and all keys of its columns in shared memory: nothing is streamed, the softmax is that of whole rows,
// and one pass gives all gradients, each written once.

#include "ops/sparse_attention/cuda/tile_kernels.h"
#include "ops/sparse_attention/cuda/tiles.cuh"

namespace lacuna::gpu {
namespace {

constexpr int kMaxChunks = kMaxColumnRows / kChunk;
constexpr int kMaxThreads = kMaxChunks / 2 * 32;

LACUNA_HOST_DEVICE constexpr int chunks_of(int rows) { return (rows + kChunk - 1) / kChunk; }
LACUNA_HOST_DEVICE constexpr int pairs_of(int chunks) { return chunks * (chunks + 1) / 2; }  // none with a later one

/// The columns of a block.
struct TileOfColumns {
  int64_t head, batch, index;

  /// Neighbouring blocks have the same columns of neighbouring heads, then neighbouring columns: they share lines of
  /// memory.
  __device__ __forceinline__ explicit TileOfColumns(const ColumnTable& table) {
    const int64_t x = blockIdx.x, tiles = table.columns.tiles();
    head = table.heads[x % table.n_heads];
    index = x / table.n_heads % tiles;
    batch = x / table.n_heads / tiles;
  }
};

/// What a block knows of the rows of its tile; in shared memory.
struct TileRows {
  int position[kMaxColumnRows], begin[kMaxColumnRows], end[kMaxColumnRows];  // see ColumnRow

  __device__ __forceinline__ void fill(const Columns& columns, int64_t tile, int rows) {
    for (int r = threadIdx.x; r < rows; r += blockDim.x) {
      const ColumnRow row = columns.row(tile, r);
      position[r] = row.position, begin[r] = row.begin, end[r] = row.end;
    }
  }

  /// Whether any query of chunk y meets a key of chunk x, and whether all meet all.
  __device__ __forceinline__ bool meets(int y, int x) const {
    return begin[y * kChunk] < (x + 1) * kChunk && end[y * kChunk + kChunk - 1] > x * kChunk;
  }
  __device__ __forceinline__ bool meets_wholly(int y, int x) const {
    return begin[y * kChunk + kChunk - 1] <= x * kChunk && end[y * kChunk] >= (x + 1) * kChunk;
  }
};

/// Starts to copy the positions of the tile's rows to [rows][kWidth]; what does not exist becomes 0.
template <int kWidth, class T>
__device__ __forceinline__ void load_columns(T* to, const HeadRows<const T>& from, const TileOfColumns& tile, int width,
                                             const TileRows& at, int rows) {
  constexpr int kPieces = kWidth / 8;
  const T* const head = from.of(tile.batch, tile.head);
  for (int x = threadIdx.x; x < rows * kPieces; x += blockDim.x) {
    const int r = x / kPieces, c = x % kPieces, position = at.position[r];
    const bool exists = position >= 0 && c * 8 < width;
    cp_async16(chunk_of<kWidth>(to, r, c), exists ? head + position * from.token + c * 8 : head, exists);
  }
}

/// Calls fn(chunk) for those of a tile that a warp owns: one from either end, since later queries meet more keys, and
/// earlier keys more queries.
template <class Fn>
__device__ __forceinline__ void for_each_chunk(int chunks, const Fn& fn) {
  const int warp = threadIdx.x / 32, other = chunks - 1 - warp;
#pragma unroll 1
  for (int turn = 0; turn < (other == warp ? 1 : 2); ++turn) fn(turn == 0 ? other : warp);
}

// o = softmax(q k^T / sqrt(d_qk)) v and its log-sum-exp.
//   grid       a block per tile of columns
//   warp       16 queries, then 16 others; every 16 keys that none of them meets are skipped, those of columns stacked
//              on theirs among them, and masks are applied only where needed
//   shared     q, k [rows][kQk] and v [rows][kV]
//   precision  products of T in f32; softmax in f32; weights rounded to T for the second product
template <class T, int kQk, int kV>
__global__ void __launch_bounds__(kMaxThreads) attention_forward_columns(const __grid_constant__ ColumnLaunch<T> call) {
  LACUNA_DYNAMIC_SHARED(T, shared);
  LACUNA_SHARED(TileRows, tile_rows, [1]);
  const TileRows& at = tile_rows[0];
  const TileOfColumns tile(call.table);
  const int chunks = chunks_of(call.table.columns.tile_rows()), rows = chunks * kChunk;
  T* const q = shared;          // [rows, kQk]
  T* const k = q + rows * kQk;  // [rows, kQk]
  T* const v = k + rows * kQk;  // [rows, kV]
  tile_rows[0].fill(call.table.columns, tile.index, rows);
  __syncthreads();
  load_columns<kQk>(q, call.q, tile, call.d_qk, at, rows);
  load_columns<kQk>(k, call.k, tile, call.d_qk, at, rows);
  load_columns<kV>(v, call.v, tile, call.d_v, at, rows);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();

  const int lane = threadIdx.x % 32;
  const float scale = call.scale * kLog2e;
  for_each_chunk(chunks, [&](int y) {
    unsigned met = 0, whole = 0;
    for (int x = 0; x <= y; ++x) {
      if (at.meets(y, x)) met |= 1u << x;
      if (at.meets_wholly(y, x)) whole |= 1u << x;
    }
    // s = q k^T
    float s[2 * kMaxChunks][4] = {};
    multiply_rows<kQk, kMaxChunks>(s, q, y * kChunk, k, 0, met);

    float largest[2] = {-INFINITY, -INFINITY};
    const int row[2] = {y * kChunk + lane / 4, y * kChunk + lane / 4 + 8};
    const int begin[2] = {at.begin[row[0]], at.begin[row[1]]}, end[2] = {at.end[row[0]], at.end[row[1]]};
#pragma unroll
    for (int c = 0; c < 2 * kMaxChunks; ++c)
      if (met >> c / 2 & 1) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int key = c * 8 + 2 * (lane % 4) + e % 2;
          if (!(whole >> c / 2 & 1) && (key < begin[e / 2] || key >= end[e / 2])) s[c][e] = -INFINITY;
          largest[e / 2] = fmaxf(largest[e / 2], s[c][e]);
        }
      }

    // p = 2^(scale (s - largest))
    float base[2], sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      largest[half] = largest_of_row(largest[half]);
      base[half] = largest[half] == -INFINITY ? 0.0f : largest[half] * scale;
    }
#pragma unroll
    for (int c = 0; c < 2 * kMaxChunks; ++c)
      if (met >> c / 2 & 1) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          s[c][e] = exp2_approx(s[c][e] * scale - base[e / 2]);
          sum[e / 2] += s[c][e];
        }
      }

    // o = p v
    float o[kV / 8][4] = {};
#pragma unroll
    for (int x = 0; x < kMaxChunks; ++x)
      if (met >> x & 1) add_product<kV>(o, s[2 * x], s[2 * x + 1], v, x * kChunk);

    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = sum_of_row(sum[half]);
      factor[half] = total == 0.0f ? 0.0f : 1.0f / total;
      const int position = at.position[row[half]];
      if (lane % 4 == 0 && position >= 0)
        call.lse[(tile.batch * call.n_heads + tile.head) * call.n + position] =
            total == 0.0f ? -INFINITY : (base[half] + log2f(total)) * kLn2;
    }
    T* const o_head = call.o.of(tile.batch, tile.head);
#pragma unroll
    for (int c = 0; c < kV; c += kQk)  // as many columns at once as the queries' place has room for
      store_rows<kQk>(*reinterpret_cast<const float(*)[kQk / 8][4]>(o + c / 8), factor, q + y * kChunk * kQk,
                      call.d_v - c, [&](int r) {
                        const int position = at.position[y * kChunk + r];
                        return position < 0 ? nullptr : o_head + position * call.o.token + c;
                      });
  });
}

// All gradients.
//
//   p = exp(scale q . k - lse)    ds = p (d_o . v - delta)        delta = sum d_o * o
//   dq = scale sum ds k           dk = scale sum ds q             dv = sum p d_o
//
//   grid       as forward
//   warp       16 keys, then 16 others, against all queries that meet them; then 16 queries and 16 others, for dq alone
//   lane       scores are transposed, s^T = k q^T: p and ds are then in registers what the products with d_o and q
//              take; ds goes to dq through shared memory
//   shared     q, k [rows][kQk], v, d_o [rows][kV], ds^T [pairs of chunks][16][16]; dv and dk leave through the place
//              of v, dq through that of q
//   precision  products of T in f32; p and ds rounded to T for theirs
template <class T, int kQk, int kV>
__global__ void __launch_bounds__(kMaxThreads)
    attention_backward_columns(const __grid_constant__ ColumnLaunch<T> call) {
  constexpr int kPair = kChunk * kChunk;
  LACUNA_DYNAMIC_SHARED(T, shared);
  LACUNA_SHARED(TileRows, tile_rows, [1]);
  LACUNA_SHARED(float, exponent, [kMaxColumnRows]);
  LACUNA_SHARED(float, delta, [kMaxColumnRows]);
  const TileRows& at = tile_rows[0];
  const TileOfColumns tile(call.table);
  const int chunks = chunks_of(call.table.columns.tile_rows()), rows = chunks * kChunk;
  T* const q = shared;            // [rows, kQk]
  T* const k = q + rows * kQk;    // [rows, kQk]
  T* const v = k + rows * kQk;    // [rows, kV]
  T* const d_o = v + rows * kV;   // [rows, kV]
  T* const ds = d_o + rows * kV;  // [chunk of queries, chunk of keys up to it][16][16], keys by queries
  tile_rows[0].fill(call.table.columns, tile.index, rows);
  __syncthreads();
  load_columns<kQk>(q, call.q, tile, call.d_qk, at, rows);
  load_columns<kQk>(k, call.k, tile, call.d_qk, at, rows);
  load_columns<kV>(v, call.v, tile, call.d_v, at, rows);
  load_columns<kV>(d_o, call.d_o, tile, call.d_v, at, rows);
  cp_async_commit();

  const int lane = threadIdx.x % 32;
  {
    constexpr int kRowsOfThread = 4 * kMaxColumnRows / kMaxThreads;  // four lanes share them
    uint4 o[kRowsOfThread][kV / 32];                                 // on their way while the tiles are
    const T* const o_head = call.o.of(tile.batch, tile.head);
    const float* const lse = call.lse + (tile.batch * call.n_heads + tile.head) * call.n;
#pragma unroll
    for (int x = 0; x < kRowsOfThread; ++x) {
      const int r = (threadIdx.x + x * blockDim.x) / 4, position = r < rows ? at.position[r] : -1;
#pragma unroll
      for (int c = 0; c < kV / 32; ++c) {
        const int column = (c * 4 + lane % 4) * 8;
        o[x][c] = uint4{};
        if (position >= 0 && column < call.d_v)
          o[x][c] = *reinterpret_cast<const uint4*>(o_head + position * call.o.token + column);
      }
      if (r < rows && lane % 4 == 0) exponent[r] = position < 0 ? 0.0f : exponent_of(lse[position]);
    }
    cp_async_wait<0>();
    __syncthreads();
#pragma unroll
    for (int x = 0; x < kRowsOfThread; ++x) {
      const int r = (threadIdx.x + x * blockDim.x) / 4;
      if (r >= rows) continue;  // leaves by whole warps
      float sum = 0.0f;
#pragma unroll
      for (int c = 0; c < kV / 32; ++c)
        sum += dot_of_eight<T>(o[x][c], *reinterpret_cast<const uint4*>(chunk_of<kV>(d_o, r, c * 4 + lane % 4)));
      sum = sum_of_row(sum);
      if (lane % 4 == 0) delta[r] = sum;
    }
    __syncthreads();
  }

  const auto row_of = [&](const HeadRows<T>& gradient, int chunk) {
    return [&, chunk, head = gradient.of(tile.batch, tile.head)](int r) {
      const int position = at.position[chunk * kChunk + r];
      return position < 0 ? nullptr : head + position * gradient.token;
    };
  };
  const float scale = call.scale * kLog2e;
  const float of_scores[2] = {call.scale, call.scale}, of_values[2] = {1.0f, 1.0f};
  for_each_chunk(chunks, [&](int x) {
    float dk[kQk / 8][4] = {}, dv[kV / 8][4] = {};
    constexpr int kStep = 2;  // chunks of queries at once
#pragma unroll 1
    for (int first = x; first < chunks; first += kStep) {
      unsigned met = 0;
      for (int y = 0; y < kStep; ++y)
        if (first + y < chunks && at.meets(first + y, x)) met |= 1u << y;
      if (met == 0) continue;
      float s[2 * kStep][4] = {}, dp[2 * kStep][4] = {};
      multiply_rows<kQk, kStep>(s, k, x * kChunk, q, first * kChunk, met);    // s^T = k q^T
      multiply_rows<kV, kStep>(dp, v, x * kChunk, d_o, first * kChunk, met);  // dp^T = v d_o^T
#pragma unroll
      for (int y = 0; y < kStep; ++y)
        if (met >> y & 1) {
          const bool whole = at.meets_wholly(first + y, x);
#pragma unroll
          for (int c = 2 * y; c < 2 * y + 2; ++c)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              const int query = first * kChunk + c * 8 + 2 * (lane % 4) + e % 2;
              const int key = x * kChunk + lane / 4 + 8 * (e / 2);
              const bool has = whole || (at.begin[query] <= key && key < at.end[query]);
              const float p = has ? exp2_approx(s[c][e] * scale - exponent[query]) : 0.0f;
              dp[c][e] = p * (dp[c][e] - delta[query]);  // ds
              s[c][e] = p;
            }
          uint32_t p_rounded[4], ds_rounded[4];
          round_product<T>(p_rounded, s[2 * y], s[2 * y + 1]);
          round_product<T>(ds_rounded, dp[2 * y], dp[2 * y + 1]);
          T* const pair = ds + (pairs_of(first + y) + x) * kPair;
#pragma unroll
          for (int i = 0; i < 4; ++i)
            *reinterpret_cast<uint32_t*>(chunk_of<kChunk>(pair, lane / 4 + i % 2 * 8, i / 2) + 2 * (lane % 4)) =
                ds_rounded[i];
          add_product<kV>(dv, p_rounded, d_o, (first + y) * kChunk);  // dv += p^T d_o
          add_product<kQk>(dk, ds_rounded, q, (first + y) * kChunk);  // dk += ds^T q
        }
    }
    T* const staging = v + x * kChunk * kV;
    store_rows<kV>(dv, of_values, staging, call.d_v, row_of(call.dv, x));
    store_rows<kQk>(dk, of_scores, staging, call.d_qk, row_of(call.dk, x));
  });
  __syncthreads();

  for_each_chunk(chunks, [&](int y) {
    float dq[kQk / 8][4] = {};
#pragma unroll 1
    for (int x = 0; x <= y; ++x) {
      if (!at.meets(y, x)) continue;
      uint32_t ds_rows[4];
      ldmatrix_x4_trans(ds_rows,
                        chunk_of<kChunk>(ds + (pairs_of(y) + x) * kPair, lane % 8 + lane / 16 * 8, lane / 8 % 2));
      add_product<kQk>(dq, ds_rows, k, x * kChunk);  // dq += ds k
    }
    store_rows<kQk>(dq, of_scores, q + y * kChunk * kQk, call.d_qk, row_of(call.dq, y));
  });
}

size_t backward_bytes(int rows, int width_qk, int width_v) {
  const int chunks = chunks_of(rows);
  return sizeof(uint16_t) * kChunk * (chunks * 2 * (width_qk + width_v) + pairs_of(chunks) * kChunk);
}

template <class T>
void launch_columns(Stream stream, void (*kernel)(ColumnLaunch<T>), const ColumnLaunch<T>& call, size_t shared_bytes) {
  const Columns& columns = call.table.columns;
  const int64_t blocks = call.batch * columns.tiles() * call.table.n_heads;
  launch(stream, kernel, dim3(grid_of(blocks, "sparse_attention")), dim3((chunks_of(columns.tile_rows()) + 1) / 2 * 32),
         shared_bytes, call);
}

}  // namespace

int64_t max_column_rows(Device device, int d_qk, int d_v) {
  constexpr size_t kStatic = sizeof(TileRows) + 2 * sizeof(float) * kMaxColumnRows + 1024;  // and what CUDA reserves
  int rows = kMaxColumnRows;
  with_widths(d_qk, d_v, [&]<int kQk, int kV>() {
    while (backward_bytes(rows, kQk, kV) + kStatic > static_cast<size_t>(properties(device).shared_bytes))
      rows -= kChunk;
  });
  return rows;
}

template <class T>
void forward_columns(Stream stream, const ColumnLaunch<T>& call) {
  with_widths(call.d_qk, call.d_v, [&]<int kQk, int kV>() {
    const int rows = chunks_of(call.table.columns.tile_rows()) * kChunk;
    launch_columns(stream, attention_forward_columns<T, kQk, kV>, call, sizeof(T) * rows * (2 * kQk + kV));
  });
}

template <class T>
void backward_columns(Stream stream, const ColumnLaunch<T>& call) {
  with_widths(call.d_qk, call.d_v, [&]<int kQk, int kV>() {
    launch_columns(stream, attention_backward_columns<T, kQk, kV>, call,
                   backward_bytes(call.table.columns.tile_rows(), kQk, kV));
  });
}

template void forward_columns(Stream, const ColumnLaunch<__nv_bfloat16>&);
template void forward_columns(Stream, const ColumnLaunch<__half>&);
template void backward_columns(Stream, const ColumnLaunch<__nv_bfloat16>&);
template void backward_columns(Stream, const ColumnLaunch<__half>&);

}  // namespace lacuna::gpu

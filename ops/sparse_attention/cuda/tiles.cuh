#pragma once
// What the tensor-core kernels of attention share. A tile is kTile rows of 16-bit numbers in shared memory; a block of
// kThreads threads keeps one tile of rows (queries, or keys in the backward of keys) and streams over tiles of the
// others. Warp w owns rows 16 w .. 16 w + 15, and skips every chunk of 16 streamed rows that none of its rows meets.
//
// A lane holds, of a [16][8] product in registers, rows g and g + 8 and columns t and t + 1 (PTX, mma.m16n8k16), with
// g = lane / 4 and t = 2 (lane % 4): element e is row g + 8 (e / 2), column t + e % 2.

#include "core/cuda/gpu.h"
#include "ops/sparse_attention/cuda/tile_kernels.h"

namespace lacuna::gpu {

inline constexpr int kThreads = 128;
inline constexpr int kChunk = 16;  // rows of a warp, and streamed rows that are skipped together
inline constexpr float kLog2e = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

/// The address of the c-th eight numbers of row r of a tile [kTile][kWidth]. The eight rows that ldmatrix reads at once
/// fall in eight different groups of banks.
template <int kWidth, class T>
__device__ __forceinline__ T* chunk_of(T* tile, int r, int c) {
  static_assert(kWidth == 16 || kWidth == 32 || kWidth % 64 == 0);
  const int swizzled = kWidth == 16 ? c ^ (r >> 2 & 1) : kWidth == 32 ? c ^ (r >> 1 & 3) : c ^ (r & 7);
  return tile + r * kWidth + swizzled * 8;
}

/// Strip::position for positions and elements that fit 31 bits, without a division for each: with one, loads would take
/// longer than products.
struct StripPositions {
  uint32_t first, step, gap = 0;  // of element 0; from an element to the next; and what is added from a run to the next
  uint32_t inverse = 0;           // t / width is t * inverse >> shift (Granlund & Montgomery 1994); 0 for a single run
  int shift = 32;

  __device__ __forceinline__ explicit StripPositions(const Strip& strip)
      : first(static_cast<uint32_t>(strip.first)), step(strip.width == 1 ? static_cast<uint32_t>(strip.period) : 1) {
    if (strip.width == 1 || strip.width >= int64_t{1} << 31) return;
    const auto width = static_cast<uint32_t>(strip.width);
    gap = static_cast<uint32_t>(strip.period) - width;
    shift = 63 - __clz(static_cast<int>(width - 1));
    inverse = static_cast<uint32_t>((uint64_t{1} << shift) / width + 1);
  }
  __device__ __forceinline__ uint32_t operator()(uint32_t t) const {
    return first + t * step + static_cast<uint32_t>(uint64_t{t} * inverse >> shift) * gap;
  }
};

/// Starts to copy elements t, t + 1, ... of a strip, up to `end`, of rows `stride` apart, to a tile. What lies past the
/// end or past the first `width` numbers of a row becomes 0. `width` and `stride` are multiples of 8, and less than
/// 2^31 bytes. A block has two threads for every row.
template <int kWidth, int kRows = kTile, class T>
__device__ __forceinline__ void load_tile(T* tile, const T* rows, int64_t stride, int width,
                                          const StripPositions& positions, int t, int end) {
  constexpr int kPieces = kWidth / 8, kRowsAtOnce = 2 * kRows / kPieces;
  static_assert(kRowsAtOnce % 8 == 0, "so that their places differ by whole rows");
  const int r = static_cast<int>(threadIdx.x) / kPieces, c = static_cast<int>(threadIdx.x) % kPieces;
  T* const to = chunk_of<kWidth>(tile, r, c);
  const bool has = c * 8 < width;
  const T* const from = rows + (has ? c * 8 : 0);
#pragma unroll
  for (int x = 0; x < kRows; x += kRowsAtOnce) {
    const bool inside = has && t + r + x < end;
    const uint32_t position = inside ? positions(t + r + x) : 0;
    cp_async16(to + x * kWidth, from + uint64_t{position} * static_cast<uint32_t>(stride), inside);
  }
}

/// s += a b^T: 16 rows of tile a from `row` on, and those chunks of 16 rows of tile b whose bits are set.
template <int kWidth, int kChunks, class T>
__device__ __forceinline__ void multiply_rows(float (&s)[2 * kChunks][4], T* a, int row, T* b, int b_row,
                                              unsigned chunks) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1  // more would only take registers for addresses
  for (int c = 0; c < kWidth / 16; ++c) {
    uint32_t rows[4];
    ldmatrix_x4(rows, chunk_of<kWidth>(a, row + lane % 16, 2 * c + lane / 16));
    T* const first = chunk_of<kWidth>(b, b_row + lane % 8 + lane / 16 * 8, 2 * c + lane / 8 % 2);
#pragma unroll
    for (int x = 0; x < kChunks; ++x)
      if (chunks >> x & 1) {
        uint32_t columns[4];
        ldmatrix_x4(columns, first + x * kChunk * kWidth);  // swizzled alike
        mma_16816<T>(s[2 * x], rows, columns[0], columns[1]);
        mma_16816<T>(s[2 * x + 1], rows, columns[2], columns[3]);
      }
  }
}

/// A product [16][16] of the lane, of two [16][8], rounded to T: as the left operand of the next product.
template <class T>
__device__ __forceinline__ void round_product(uint32_t (&p)[4], const float (&left)[4], const float (&right)[4]) {
  p[0] = pack<T>(left[0], left[1]), p[1] = pack<T>(left[2], left[3]);
  p[2] = pack<T>(right[0], right[1]), p[3] = pack<T>(right[2], right[3]);
}

/// y += p b: p [16][16] in registers, and 16 rows of tile b from `row` on.
template <int kWidth, class T>
__device__ __forceinline__ void add_product(float (&y)[kWidth / 8][4], const uint32_t (&p)[4], T* b, int row) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int c = 0; c < kWidth / 16; ++c) {
    uint32_t columns[4];
    ldmatrix_x4_trans(columns, chunk_of<kWidth>(b, row + lane % 16, 2 * c + lane / 16));
    mma_16816<T>(y[2 * c], p, columns[0], columns[1]);
    mma_16816<T>(y[2 * c + 1], p, columns[2], columns[3]);
  }
}
template <int kWidth, class T>
__device__ __forceinline__ void add_product(float (&y)[kWidth / 8][4], const float (&left)[4], const float (&right)[4],
                                            T* b, int row) {
  uint32_t p[4];
  round_product<T>(p, left, right);
  add_product<kWidth>(y, p, b, row);
}

/// sum a[i] b[i] of eight numbers of T each.
template <class T>
__device__ __forceinline__ float dot_of_eight(const uint4& a, const uint4& b) {
  const uint32_t left[4] = {a.x, a.y, a.z, a.w}, right[4] = {b.x, b.y, b.z, b.w};
  float sum = 0.0f;
#pragma unroll
  for (int x = 0; x < 4; ++x) {
    const float2 p = unpack<T>(left[x]), q = unpack<T>(right[x]);
    sum += p.x * q.x + p.y * q.y;
  }
  return sum;
}

/// Weights of a row are 2^(scale log2(e) q . k - exponent), with this for its log-sum-exp. A row without keys has none.
__device__ __forceinline__ float exponent_of(float lse) { return lse == -INFINITY ? 0.0f : lse * kLog2e; }

/// The sum, and the largest, of a value over the four lanes that share rows.
__device__ __forceinline__ float sum_of_row(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
__device__ __forceinline__ float largest_of_row(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

/// Which streamed rows the rows of a tile meet: row r those in [begin[r], end[r]), whose ends never fall from row to
/// row; in shared memory.
struct TileRanges {
  int begin[kTile], end[kTile];
};

/// What a warp needs of them.
struct WarpRanges {
  int begin[2], end[2];    // of this lane's rows
  int any_begin, any_end;  // what some row of the warp meets
  int all_begin, all_end;  // what all rows of the warp meet

  __device__ __forceinline__ explicit WarpRanges(const TileRanges& tile) {
    const int first = threadIdx.x / 32 * kChunk, last = first + kChunk - 1, row = first + threadIdx.x % 32 / 4;
    for (int half = 0; half < 2; ++half) {
      begin[half] = tile.begin[row + 8 * half];
      end[half] = tile.end[row + 8 * half];
    }
    any_begin = tile.begin[first], any_end = tile.end[last];
    all_begin = tile.begin[last], all_end = tile.end[first];
  }

  /// Bit x: whether the warp meets any of the streamed rows t + 16 x .. t + 16 x + 15.
  __device__ __forceinline__ unsigned met(int t) const {
    unsigned bits = 0;
    for (int x = 0; x < kTile / kChunk; ++x)
      if (t + x * kChunk < any_end && t + (x + 1) * kChunk > any_begin) bits |= 1u << x;
    return bits;
  }
  /// Whether all its rows meet all streamed rows t .. t + count - 1.
  __device__ __forceinline__ bool whole(int t, int count) const { return all_begin <= t && t + count <= all_end; }
  __device__ __forceinline__ bool has(int half, int t) const { return begin[half] <= t && t < end[half]; }
};

/// Gives pairs that do not meet, or whose bit in `skipped` is set, the value `masked`: s is a product of the warp's
/// rows with those streamed from t on.
template <int kProducts>
__device__ __forceinline__ void mask_scores(float (&s)[kProducts][4], const WarpRanges& met, int t, uint32_t skipped,
                                            float masked) {
#pragma unroll
  for (int c = 0; c < kProducts; ++c)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (!met.has(e / 2, t + c * 8 + 2 * static_cast<int>(threadIdx.x % 4) + e % 2) || (skipped >> (4 * c + e) & 1))
        s[c][e] = masked;
}

/// Fills `ranges` from range_of(r), the range of row r; rows from `count` on meet nothing. All threads of the block.
template <class RangeOf>
__device__ __forceinline__ void fill_ranges(TileRanges& ranges, int count, const RangeOf& range_of) {
  const int r = threadIdx.x;
  if (r >= kTile) return;
  const Range range = range_of(r < count ? r : count - 1);
  ranges.begin[r] = static_cast<int>(r < count ? range.begin : range.end);
  ranges.end[r] = static_cast<int>(range.end);
}

/// Bit 4 c + e for element e of the c-th [16][8] product of the lane: skips(half, column), with the lane's row and the
/// column among the streamed rows. Rare, so one loop and no unrolled copies.
template <class Skips>
__device__ __forceinline__ uint32_t skipped_bits(int columns, const Skips& skips) {
  uint32_t bits = 0;
#pragma unroll 1
  for (int x = 0; x < columns / 2; ++x)
    if (skips(x % 4 / 2, x / 4 * 8 + 2 * (threadIdx.x % 4) + x % 2)) bits |= 1u << x;
  return bits;
}

/// The tile that a block of threads keeps.
struct TileOfBlock {
  const Band* bands;  // of the head
  int begin, end;     // those that this launch computes, alike in their groups
  int64_t head, batch, group;
  int64_t row;  // the first row of the tile, in the list of the group
  int count;    // rows of the tile; 0 if there are none

  /// `rows_of(view, group)` is how many rows the list of a group has. Neighbouring blocks have the same rows of
  /// neighbouring heads, then of neighbouring groups: they share lines of memory. The last rows go first: in causal
  /// patterns they meet the most.
  template <class RowsOf>
  __device__ __forceinline__ TileOfBlock(const BandTable& table, int64_t n, const RowsOf& rows_of) {
    const auto tiles_of_batch = static_cast<uint32_t>(table.tiles), n_heads = static_cast<uint32_t>(table.n_heads);
    const uint32_t tile = blockIdx.x / n_heads;  // in all batch entries
    const HeadBands& h = table.heads[blockIdx.x % n_heads];
    bands = table.bands + h.first;
    begin = h.begin, end = h.end, head = h.head, batch = tile / tiles_of_batch;
    const View& view = bands[begin].view;
    const auto groups = static_cast<uint32_t>(view.groups(n)), turn = tile % tiles_of_batch;
    const int64_t tiles = (rows_of(view, 0) + kTile - 1) / kTile;
    group = turn % groups;
    row = (tiles - 1 - turn / groups) * kTile;
    const int64_t rows = row < 0 ? 0 : lesser(kTile, rows_of(view, group) - row);
    count = static_cast<int>(greater(0, rows));
  }
};

/// The 16 rows of a warp's result, times factor[half], rounded to T, to row_of(r), null for rows that do not exist; 16
/// bytes at a time. `staging` [16][kWidth] is shared memory that no other warp uses meanwhile.
template <int kWidth, class T, class RowOf>
__device__ __forceinline__ void store_rows(const float (&y)[kWidth / 8][4], const float (&factor)[2], T* staging,
                                           int width, const RowOf& row_of) {
  const int lane = threadIdx.x % 32;
  __syncwarp();
#pragma unroll
  for (int c = 0; c < kWidth / 8; ++c)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      T* const at = chunk_of<kWidth>(staging, lane / 4 + 8 * half, c) + 2 * (lane % 4);
      *reinterpret_cast<uint32_t*>(at) = pack<T>(y[c][2 * half] * factor[half], y[c][2 * half + 1] * factor[half]);
    }
  __syncwarp();
  constexpr int kPieces = kWidth / 8;
#pragma unroll
  for (int i = 0; i < kChunk * kPieces / 32; ++i) {
    const int x = lane + i * 32, r = x / kPieces, c = x % kPieces;
    T* const row = row_of(r);
    if (row != nullptr && c * 8 < width)
      *reinterpret_cast<uint4*>(row + c * 8) = *reinterpret_cast<const uint4*>(chunk_of<kWidth>(staging, r, c));
  }
}

/// A block for each tile of every head of every batch entry.
template <class Call>
void launch_tiles(Stream stream, void (*kernel)(Call), const Call& call, size_t shared_bytes) {
  const int64_t blocks = call.batch * call.table.tiles * call.table.n_heads;
  launch(stream, kernel, dim3(grid_of(blocks, "sparse_attention")), dim3(kThreads), shared_bytes, call);
}

}  // namespace lacuna::gpu

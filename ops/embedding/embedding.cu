#include "core/cuda/kernel.h"
#include "ops/embedding/embedding_kernels.h"

namespace lacuna::gpu {
namespace {

constexpr int kMaxTables = 8;
constexpr int64_t kChunkRows = 4096;    // of backward
constexpr int64_t kMaxPartialRows = 4096;  // of all chunks of a table together

// The position tables: digits of a position in the mixed radix of their extents, the last one fastest.
struct Tables {
  const float* table[kMaxTables];
  int64_t divisor[kMaxTables], extent[kMaxTables];
  int count;
};

// h[b, 0] = start; a token that is not below n_vocab gives NaN. h[b, t] = token[x[b, t - 1]] + sum over tables p of
// p[coordinate of t - 1]. h [rows, d].
//   grid    one warp for a row, kBlockThreads / 32 rows a block
//   lane    columns lane, lane + 32, ...
template <class T>
__global__ void embedding_forward_kernel(const uint8_t* tokens, const float* token, int64_t n_vocab, Tables tables,
                                         const float* start, int64_t rows, int64_t n_ctx, int64_t d, T* h) {
  const int64_t row = int64_t{blockIdx.x} * (kBlockThreads / kWarpSize) + threadIdx.y;
  if (row >= rows) return;
  const int64_t t = row % n_ctx;
  const bool valid = t == 0 || tokens[row - 1] < n_vocab;
  const float* const of_token = t == 0 || !valid ? start : token + tokens[row - 1] * d;
  for (int64_t j = threadIdx.x; j < d; j += kWarpSize) {
    float sum = valid ? of_token[j] : NAN;
    for (int p = 0; t > 0 && p < tables.count; ++p)
      sum += tables.table[p][(t - 1) / tables.divisor[p] % tables.extent[p] * d + j];
    h[row * d + j] = round_to<T>(sum);
  }
}

// Row t = *position of the same, for every sequence: h [batch, d]. `previous` are the tokens at t - 1.
//   grid    one warp for a row
__global__ void embedding_at_kernel(const uint8_t* previous, const int64_t* position, const float* token,
                                    int64_t n_vocab, Tables tables, const float* start, int64_t batch, int64_t d,
                                    float* h) {
  const int64_t row = int64_t{blockIdx.x} * (kBlockThreads / kWarpSize) + threadIdx.y, t = *position;
  if (row >= batch) return;
  const bool valid = t == 0 || previous[row] < n_vocab;
  const float* const of_token = t == 0 || !valid ? start : token + previous[row] * d;
  for (int64_t j = threadIdx.x; j < d; j += kWarpSize) {
    float sum = valid ? of_token[j] : NAN;
    for (int p = 0; t > 0 && p < tables.count; ++p)
      sum += tables.table[p][(t - 1) / tables.divisor[p] % tables.extent[p] * d + j];
    h[row * d + j] = sum;
  }
}

// Which row of a table a row of dh belongs to; -1: none.
struct Bucket {
  enum Kind { start, token, position } kind;
  const uint8_t* tokens;
  int64_t n_ctx, divisor, extent;
  __device__ int64_t operator()(int64_t row) const {
    const int64_t t = row % n_ctx;
    if (kind == start) return t == 0 ? 0 : -1;
    if (t == 0) return -1;
    return kind == token ? tokens[row - 1] : (t - 1) / divisor % extent;
  }
};

// partial[chunk, b, :] = the sum of the rows r of dh [rows, d] with bucket(r) = b in [chunk, chunk + 1) rows_per_chunk.
//   grid       a block for each bucket (x) and chunk (y)
//   thread     looks at one row of each kBlockThreads to see whether it belongs; then sums columns threadIdx.x, + kBlockThreads,
//   ...
//              of those that do, in their order
//   shared     the list of the rows of these kBlockThreads that belong
//   precision  loads T, accumulates f32
template <class T>
__global__ void bucket_sum_kernel(const T* dh, Bucket bucket, int64_t rows, int64_t d, int64_t rows_per_chunk,
                                  float* partial) {
  LACUNA_SHARED(int, list, [kBlockThreads]);
  LACUNA_SHARED(int, of_warp, [kBlockThreads / kWarpSize]);
  const int64_t begin = int64_t{blockIdx.y} * rows_per_chunk;
  const int64_t end = begin + rows_per_chunk < rows ? begin + rows_per_chunk : rows;
  float* const sum = partial + (int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * d;
  for (int64_t j = threadIdx.x; j < d; j += kBlockThreads) sum[j] = 0.0f;

  const int warp = static_cast<int>(threadIdx.x) / kWarpSize, lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (int64_t r0 = begin; r0 < end; r0 += kBlockThreads) {
    const int64_t row = r0 + threadIdx.x;
    const bool mine = row < end && bucket(row) == blockIdx.x;
    const unsigned vote = __ballot_sync(0xffffffffu, mine);
    if (lane == 0) of_warp[warp] = __popc(vote);
    __syncthreads();
    int place = __popc(vote & ((1u << lane) - 1)), listed = 0;
    for (int w = 0; w < kBlockThreads / kWarpSize; ++w) {
      if (w < warp) place += of_warp[w];
      listed += of_warp[w];
    }
    if (mine) list[place] = static_cast<int>(threadIdx.x);
    __syncthreads();
    for (int64_t j = threadIdx.x; j < d; j += kBlockThreads) {
      float total = sum[j];
      for (int i = 0; i < listed; ++i) total += to_float(dh[(r0 + list[i]) * d + j]);
      sum[j] = total;
    }
    // The lists are written again only behind the next barrier.
  }
}

// table[i] += the sum over chunks, in their order, of partial[chunk, i].   thread: one element
__global__ void add_chunks_kernel(const float* partial, int64_t chunks, int64_t count, float* table) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  float sum = 0.0f;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk * count + i];
  table[i] += sum;
}

template <class T>
void add_by_bucket(Stream stream, const Tensor& dh, const Bucket& bucket, int64_t n_buckets, const Tensor& table) {
  const int64_t d = dh.dim(2), rows = dh.dim(0) * dh.dim(1), count = n_buckets * d;
  if (rows == 0 || count == 0) return;
  // A fact of the shapes alone: the order of the sums follows from it.
  const int64_t chunks = std::clamp<int64_t>(kMaxPartialRows / n_buckets, 1, ceil_div(rows, kChunkRows));
  const MemoryScope scope(MemoryCategory::workspace);
  const Tensor partial = empty({chunks, n_buckets, d}, DType::f32, stream.device);
  launch(stream, bucket_sum_kernel<T>, dim3(grid_of(n_buckets, "embedding"), static_cast<unsigned>(chunks)),
         dim3(kBlockThreads), 0, data<T>(dh), bucket, rows, d, ceil_div(rows, chunks), data<float>(partial));
  launch(stream, add_chunks_kernel, dim3(grid_of(ceil_div(count, kBlockThreads), "embedding")), dim3(kBlockThreads), 0,
         data<float>(partial), chunks, count, data<float>(table));
}

Tables tables_of(const std::vector<Tensor>& position) {
  check(position.size() <= kMaxTables, "embedding: on a GPU at most ", kMaxTables, " position tables, got ",
        position.size());
  Tables tables{};
  tables.count = static_cast<int>(position.size());
  int64_t divisor = 1;
  for (size_t p = position.size(); p-- > 0; divisor *= position[p].dim(0)) {
    tables.table[p] = data<float>(position[p]);
    tables.divisor[p] = divisor;
    tables.extent[p] = position[p].dim(0);
  }
  return tables;
}

}  // namespace

void embedding_at(Stream stream, const Tensor& previous, const Tensor& position, const Tensor& token,
                  const std::vector<Tensor>& tables, const Tensor& start, const Tensor& h) {
  constexpr int kRows = kBlockThreads / kWarpSize;
  const int64_t batch = h.dim(0);
  if (batch == 0) return;
  launch(stream, embedding_at_kernel, dim3(grid_of(ceil_div(batch, kRows), "embedding_at")), dim3(kWarpSize, kRows), 0,
         data<uint8_t>(previous), data<int64_t>(position), data<float>(token), token.dim(0), tables_of(tables),
         data<float>(start), batch, h.dim(1), data<float>(h));
}

void embedding_forward(Stream stream, const Tensor& tokens, const Tensor& token, const std::vector<Tensor>& position,
                       const Tensor& start, const Tensor& h) {
  const Tables tables = tables_of(position);
  dispatch_float(h.dtype(), "embedding", [&]<class T>() {
    constexpr int kRows = kBlockThreads / kWarpSize;
    if (tokens.numel() == 0) return;
    launch(stream, embedding_forward_kernel<T>, dim3(grid_of(ceil_div(tokens.numel(), kRows), "embedding")),
           dim3(kWarpSize, kRows), 0, data<uint8_t>(tokens), data<float>(token), token.dim(0), tables,
           data<float>(start), tokens.numel(), tokens.dim(1), token.dim(1), data<T>(h));
  });
}

void embedding_backward(Stream stream, const Tensor& dh, const Tensor& tokens, const std::vector<int64_t>& extents,
                        const Tensor& dtoken, const std::vector<Tensor>& dposition, const Tensor& dstart) {
  dispatch_float(dh.dtype(), "embedding", [&]<class T>() {
    Bucket bucket{Bucket::start, data<uint8_t>(tokens), tokens.dim(1), 1, 1};
    if (dstart.defined()) add_by_bucket<T>(stream, dh, bucket, 1, dstart);
    bucket.kind = Bucket::token;
    if (dtoken.defined()) add_by_bucket<T>(stream, dh, bucket, dtoken.dim(0), dtoken);
    bucket.kind = Bucket::position;
    for (size_t p = extents.size(); p-- > 0; bucket.divisor *= extents[p]) {
      bucket.extent = extents[p];
      if (dposition[p].defined()) add_by_bucket<T>(stream, dh, bucket, extents[p], dposition[p]);
    }
  });
}

}  // namespace lacuna::gpu

#include <algorithm>

#include "core/parallel.h"
#include "ops/embedding/embedding_kernels.h"
#include "ops/tokens.h"
#include "ops/widen.h"

namespace lacuna::cpu {
namespace {

constexpr int64_t kRowsPerChunk = 64;

/// The digit of `position` for table p, in the mixed radix of the extents, the last one fastest.
struct Coordinate {
  int64_t divisor = 1, extent;
  int64_t operator()(int64_t position) const { return position / divisor % extent; }
};

std::vector<Coordinate> coordinates_of(const std::vector<int64_t>& extents) {
  std::vector<Coordinate> coordinates(extents.size());
  int64_t divisor = 1;
  for (size_t p = extents.size(); p-- > 0; divisor *= extents[p]) coordinates[p] = {divisor, extents[p]};
  return coordinates;
}

/// table[bucket[r]] += rows[r] for every r whose bucket is not negative. Each row of the table gets its sum in the
/// order of r, in pieces of kRowsPerChunk that are summed in parallel: the bits do not depend on the threads.
template <class T>
void add_by_bucket(const T* rows, int64_t d, const std::vector<int64_t>& bucket, int64_t n_buckets, T* table) {
  // A stable counting sort: order[begin[b] .. begin[b + 1]) are the rows of bucket b.
  std::vector<int64_t> begin(static_cast<size_t>(n_buckets + 1));
  for (const int64_t b : bucket)
    if (b >= 0) ++begin[static_cast<size_t>(b + 1)];
  for (size_t b = 0; b < static_cast<size_t>(n_buckets); ++b) begin[b + 1] += begin[b];
  std::vector<int64_t> order(static_cast<size_t>(begin.back())), next(begin);
  for (size_t r = 0; r < bucket.size(); ++r)
    if (bucket[r] >= 0) order[static_cast<size_t>(next[static_cast<size_t>(bucket[r])]++)] = static_cast<int64_t>(r);

  struct Piece {
    int64_t bucket, begin, end;  // a range of `order`
  };
  std::vector<Piece> pieces;
  for (int64_t b = 0; b < n_buckets; ++b) {
    const int64_t end = begin[static_cast<size_t>(b + 1)];
    for (int64_t i = begin[static_cast<size_t>(b)]; i < end; i += kRowsPerChunk)
      pieces.push_back({b, i, std::min(end, i + kRowsPerChunk)});
  }

  const MemoryScope scope(MemoryCategory::workspace);
  const auto n_pieces = static_cast<int64_t>(pieces.size());
  const Tensor partial = empty({n_pieces, d}, dtype_of<T>);
  T* const sums = partial.data<T>();
  const auto sum_piece = [&, sums](int64_t first, int64_t) {
    const Piece& piece = pieces[static_cast<size_t>(first)];
    T* const sum = sums + first * d;
    std::fill(sum, sum + d, T{0});
    for (int64_t i = piece.begin; i < piece.end; ++i) {
      const T* const row = rows + order[static_cast<size_t>(i)] * d;
      for (int64_t j = 0; j < d; ++j) sum[j] += row[j];
    }
  };
  parallel_for(n_pieces, sum_piece, /*grain=*/1);
  for (int64_t i = 0; i < n_pieces; ++i) {
    T* const row = table + pieces[static_cast<size_t>(i)].bucket * d;
    for (int64_t j = 0; j < d; ++j) row[j] += sums[i * d + j];
  }
}

}  // namespace

void embedding_forward(Stream stream, const Tensor& tokens, const Tensor& token, const std::vector<Tensor>& position,
                       const Tensor& start, const Tensor& h) {
  if (is_16_bit(h.dtype()))
    return write_rounded(h,
                         [&](const Tensor& wide) { embedding_forward(stream, tokens, token, position, start, wide); });
  dispatch_f32_f64(token.dtype(), "embedding", [&]<class T>() {
    const int64_t n_ctx = tokens.dim(1), d = token.dim(1);
    std::vector<int64_t> extents;
    for (const Tensor& table : position) extents.push_back(table.dim(0));
    const std::vector<Coordinate> coordinates = coordinates_of(extents);
    const uint8_t* const x = tokens.data<uint8_t>();
    const auto body = [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {  // row r = (b, t)
        T* const out = h.data<T>() + r * d;
        const int64_t t = r % n_ctx;
        if (t == 0) {
          std::copy_n(start.data<T>(), d, out);
          continue;
        }
        std::copy_n(token.data<T>() + x[r - 1] * d, d, out);
        for (size_t p = 0; p < position.size(); ++p) {
          const T* const row = position[p].data<T>() + coordinates[p](t - 1) * d;
          for (int64_t j = 0; j < d; ++j) out[j] += row[j];
        }
      }
    };
    parallel_for(tokens.numel(), body, kRowsPerChunk);
  });
}

void embedding_backward(Stream stream, const Tensor& dh, const Tensor& tokens, const std::vector<int64_t>& extents,
                        const Tensor& dtoken, const std::vector<Tensor>& dposition, const Tensor& dstart) {
  if (is_16_bit(dh.dtype())) return embedding_backward(stream, widened(dh), tokens, extents, dtoken, dposition, dstart);
  dispatch_f32_f64(dh.dtype(), "embedding", [&]<class T>() {
    const int64_t n_ctx = tokens.dim(1), d = dh.dim(2);
    const uint8_t* const x = tokens.data<uint8_t>();
    std::vector<int64_t> bucket(static_cast<size_t>(tokens.numel()));
    const auto add_to = [&](const Tensor& table, int64_t n_buckets, const auto& bucket_of_row) {
      if (!table.defined()) return;
      for (size_t r = 0; r < bucket.size(); ++r) bucket[r] = bucket_of_row(static_cast<int64_t>(r));
      add_by_bucket(dh.data<T>(), d, bucket, n_buckets, table.data<T>());
    };

    add_to(dstart, 1, [&](int64_t r) { return r % n_ctx == 0 ? 0 : -1; });
    add_to(dtoken, dtoken.defined() ? dtoken.dim(0) : 0,
           [&](int64_t r) { return r % n_ctx == 0 ? -1 : int{x[r - 1]}; });
    const std::vector<Coordinate> coordinates = coordinates_of(extents);
    for (size_t p = 0; p < extents.size(); ++p)
      add_to(dposition[p], extents[p],
             [&](int64_t r) { return r % n_ctx == 0 ? int64_t{-1} : coordinates[p](r % n_ctx - 1); });
  });
}

void embedding_at(Stream, const Tensor& previous, const Tensor& position, const Tensor& token,
                  const std::vector<Tensor>& tables, const Tensor& start, const Tensor& h) {
  const int64_t t = position.data<int64_t>()[0], batch = h.dim(0), d = h.dim(1);
  if (t > 0) check_tokens("embedding_at", "previous", previous, token.dim(0));
  std::vector<int64_t> extents;
  for (const Tensor& table : tables) extents.push_back(table.dim(0));
  const std::vector<Coordinate> coordinates = coordinates_of(extents);
  dispatch_f32_f64(h.dtype(), "embedding_at", [&]<class T>() {
    for (int64_t b = 0; b < batch; ++b) {
      T* const row = h.data<T>() + b * d;
      std::copy_n(t == 0 ? start.data<T>() : token.data<T>() + previous.data<uint8_t>()[b] * d, d, row);
      for (size_t p = 0; t > 0 && p < tables.size(); ++p) {
        const T* const of_position = tables[p].data<T>() + coordinates[p](t - 1) * d;
        for (int64_t c = 0; c < d; ++c) row[c] += of_position[c];
      }
    }
  });
}

}  // namespace lacuna::cpu

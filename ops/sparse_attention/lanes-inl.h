// What the attention tiles are made of: vectors of queries and small matrix products. Compiled once for each
// instruction set (Highway's foreach_target).
#if defined(LACUNA_OPS_SPARSE_ATTENTION_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LACUNA_OPS_SPARSE_ATTENTION_LANES_INL_H_
#undef LACUNA_OPS_SPARSE_ATTENTION_LANES_INL_H_
#else
#define LACUNA_OPS_SPARSE_ATTENTION_LANES_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/sparse_attention/tiles_cpu.h"
#include "ops/unroll.h"

HWY_BEFORE_NAMESPACE();
namespace lacuna::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using Ints = hn::RebindToSigned<Floats>;
using V = hn::Vec<Floats>;

constexpr int kLanes = static_cast<int>(hn::MaxLanes(Floats()));
#if HWY_TARGET == HWY_AVX3
constexpr int kVectors = 2;  // of queries in a tile
constexpr int kRows = 8;     // of the micro-kernel of two vectors: its accumulators stay in registers
#elif HWY_TARGET == HWY_SCALAR
constexpr int kVectors = 8;
constexpr int kRows = 6;
#else
constexpr int kVectors = 4;
constexpr int kRows = 6;
#endif
constexpr int kRowsOf1 = 10;                    // of that of one vector
constexpr int kRowsOf3 = kVectors > 2 ? 4 : 0;  // of that of three, if there is one
constexpr int kTile = kVectors * kLanes;
constexpr int kStep = 128;  // keys whose scores are held at once: [kStep][kTile] floats
constexpr int kSlab = 256;  // keys packed at once

constexpr float kLog2e = 1.44269504088896341f, kLn2 = 0.693147180559945309f;
constexpr float kInfinity = HUGE_VALF;

HWY_INLINE V Set(float x) { return hn::Set(Floats(), x); }
HWY_INLINE V Load(const float* p) { return hn::LoadU(Floats(), p); }
HWY_INLINE void Store(V v, float* p) { hn::StoreU(v, Floats(), p); }

/// 2^x for x <= 0, to 1.6e-7 relative; 0 below -64, far under what a sum that holds a 1 can show: products of weights
/// that small with gradients would be subnormal, which is slow, and a trained softmax has many of them. NaN stays NaN:
/// Max returns its second operand when either is NaN.
HWY_INLINE V Exp2(V x) {
  const V magic =
      Set(12582912.0f + 127.0f);  // 1.5 * 2^23: adding it rounds to an integer, which 127 turns into an exponent
  const V y = hn::Max(Set(-127.0f), x);
  const V rounded = hn::Add(y, magic);
  const V f = hn::Sub(y, hn::Sub(rounded, magic));  // in [-1/2, 1/2], where the polynomial is 2^f
  V p = Set(1.326472731e-3f);
  p = hn::MulAdd(p, f, Set(9.671512991e-3f));
  p = hn::MulAdd(p, f, Set(5.550733581e-2f));
  p = hn::MulAdd(p, f, Set(2.402224243e-1f));
  p = hn::MulAdd(p, f, Set(6.931470037e-1f));
  p = hn::MulAdd(p, f, Set(1.0f));
  p = hn::Mul(p, hn::BitCast(Floats(), hn::ShiftLeft<23>(hn::BitCast(Ints(), rounded))));
  return hn::IfThenZeroElse(hn::Lt(x, Set(-64.0f)), p);
}

/// A matrix read along rows of `row` and columns of `column` elements.
struct Matrix {
  const float* data;
  int64_t row, column;
};

// --- Fetching ahead ---

/// Rows of the work to come. They lie far apart, where the hardware does not guess the next one, and are fetched into
/// the second-level cache a few at a time while products run.
class Ahead {
 public:
  void clear() { count_ = next_ = 0; }

  /// The rows at the positions of elements [begin, end) of `strip`, of this head and those after it.
  void add(const Rows& rows, Strip strip, int64_t begin, int64_t end, int64_t heads = 1) {
    const int64_t size = size_of(rows.dtype);
    add(static_cast<const char*>(rows.data), rows.distance * size, heads * rows.width * size, strip, begin, end);
  }
  void add(const ResultRows& rows, Strip strip, int64_t begin, int64_t end, int64_t heads = 1) {
    add(reinterpret_cast<const char*>(rows.data), rows.distance * 4, heads * rows.width * 4, strip, begin, end);
  }

  void fetch_some() {
    for (int64_t fetched = 0; fetched < kBytesAtOnce && next_ < count_;) {
      Piece& piece = pieces_[next_];
      const char* const row = piece.data + piece.strip.position(piece.begin) * piece.distance;
      for (int64_t at = 0; at < piece.bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
      fetched += piece.bytes;
      if (++piece.begin == piece.end) ++next_;
    }
  }

 private:
  static constexpr int64_t kBytesAtOnce = 2560;
  static constexpr int kMost = 10;
  struct Piece {
    const char* data;
    int64_t distance, bytes;
    Strip strip;
    int64_t begin, end;
  };

  void add(const char* data, int64_t distance, int64_t bytes, Strip strip, int64_t begin, int64_t end) {
    if (begin < end && count_ < kMost) pieces_[count_++] = {data, distance, bytes, strip, begin, end};
  }

  int count_ = 0, next_ = 0;
  Piece pieces_[kMost];
};

// --- Products: c [rows][vectors] (+)= a [rows][depth] * b [depth][vectors], a broadcast element by element ---

template <int kM, int kN, bool kAdd>
HWY_INLINE void MicroKernel(int64_t depth, const float* HWY_RESTRICT a, int64_t a_row, int64_t a_column,
                            const float* HWY_RESTRICT b, int64_t b_row, float* HWY_RESTRICT c, int64_t c_row) {
  V sum[kM][kN];
  LACUNA_UNROLL
  for (int m = 0; m < kM; ++m) {
    LACUNA_UNROLL
    for (int x = 0; x < kN; ++x) sum[m][x] = kAdd ? Load(c + m * c_row + x * kLanes) : hn::Zero(Floats());
  }
  for (int64_t k = 0; k < depth; ++k) {
    V bk[kN];
    LACUNA_UNROLL
    for (int x = 0; x < kN; ++x) bk[x] = Load(b + k * b_row + x * kLanes);
    LACUNA_UNROLL
    for (int m = 0; m < kM; ++m) {
      const V am = Set(a[m * a_row + k * a_column]);
      LACUNA_UNROLL
      for (int x = 0; x < kN; ++x) sum[m][x] = hn::MulAdd(am, bk[x], sum[m][x]);
    }
  }
  LACUNA_UNROLL
  for (int m = 0; m < kM; ++m) {
    LACUNA_UNROLL
    for (int x = 0; x < kN; ++x) Store(sum[m][x], c + m * c_row + x * kLanes);
  }
}

/// MicroKernel of `rows` rows, at most kM.
template <int kM, int kN, bool kAdd>
HWY_INLINE void RowsKernel(int rows, int64_t depth, Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row) {
  if constexpr (kM > 0) {
    if (rows == kM)
      MicroKernel<kM, kN, kAdd>(depth, a.data, a.row, a.column, b, b_row, c, c_row);
    else
      RowsKernel<kM - 1, kN, kAdd>(rows, depth, a, b, b_row, c, c_row);
  }
}

/// Calls fn(first row, rows) for blocks of at most `most` rows, of equal size or nearly: a kernel of one or two rows
/// waits for each of its multiply-adds.
template <class Fn>
HWY_INLINE void ForEachRowBlock(int rows, int most, const Fn& fn) {
  const int blocks = (rows + most - 1) / most;
  for (int block = 0, row = 0; block < blocks; ++block) {
    const int count = (rows - row) / (blocks - block);
    fn(row, count);
    row += count;
  }
}

template <int kM, int kN, bool kAdd>
void ProductOfGroup(Ahead& ahead, int rows, int64_t depth, Matrix a, const float* b, int64_t b_row, float* c,
                    int64_t c_row) {
  ForEachRowBlock(rows, kM, [&](int row, int count) HWY_ATTR {
    ahead.fetch_some();
    RowsKernel<kM, kN, kAdd>(count, depth, {a.data + row * a.row, a.row, a.column}, b, b_row, c + row * c_row, c_row);
  });
}

template <bool kAdd>
void Product(Ahead& ahead, int rows, int64_t vectors, int64_t depth, Matrix a, const float* b, int64_t b_row, float* c,
             int64_t c_row) {
  int64_t x = 0;
  for (; x + 2 <= vectors && (kRowsOf3 == 0 || vectors - x != 3); x += 2)
    ProductOfGroup<kRows, 2, kAdd>(ahead, rows, depth, a, b + x * kLanes, b_row, c + x * kLanes, c_row);
  if constexpr (kRowsOf3 != 0) {
    if (vectors - x == 3)
      return ProductOfGroup<kRowsOf3, 3, kAdd>(ahead, rows, depth, a, b + x * kLanes, b_row, c + x * kLanes, c_row);
  }
  if (x < vectors)
    ProductOfGroup<kRowsOf1, 1, kAdd>(ahead, rows, depth, a, b + x * kLanes, b_row, c + x * kLanes, c_row);
}

}  // namespace lacuna::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LACUNA_OPS_SPARSE_ATTENTION_LANES_INL_H_

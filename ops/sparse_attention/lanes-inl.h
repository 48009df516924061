// What the attention tiles are made of: vectors of queries, small matrix products, packing and transposes. Compiled
// once for each instruction set (Highway's foreach_target).
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

#ifndef LACUNA_UNROLL
#if HWY_COMPILER_CLANG
#define LACUNA_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LACUNA_UNROLL _Pragma("GCC unroll 16")
#endif
#endif

HWY_BEFORE_NAMESPACE();
namespace lacuna::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using Ints = hn::RebindToSigned<Floats>;
using V = hn::Vec<Floats>;

constexpr int kLanes = static_cast<int>(hn::MaxLanes(Floats()));
#if HWY_TARGET == HWY_AVX3
constexpr int kVectors = 2;  // of queries in a tile
constexpr int kRows = 8;     // of the micro-kernel: kRows * kGroup accumulators stay in registers
#elif HWY_TARGET == HWY_SCALAR
constexpr int kVectors = 8;
constexpr int kRows = 6;
#else
constexpr int kVectors = 4;
constexpr int kRows = 6;
#endif
constexpr int kGroup = 2;  // vectors of the micro-kernel
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

  /// The rows at the positions of elements [begin, end) of `strip`.
  void add(const Rows& rows, Strip strip, int64_t begin, int64_t end) {
    const int64_t size = size_of(rows.dtype);
    add(static_cast<const char*>(rows.data), rows.distance * size, rows.width * size, strip, begin, end);
  }
  void add(const ResultRows& rows, Strip strip, int64_t begin, int64_t end) {
    add(reinterpret_cast<const char*>(rows.data), rows.distance * 4, rows.width * 4, strip, begin, end);
  }

  void fetch_some() {
    for (int fetched = 0; fetched < kRowsAtOnce && next_ < count_; ++fetched) {
      Piece& piece = pieces_[next_];
      const char* const row = piece.data + piece.strip.position(piece.begin) * piece.distance;
      for (int64_t at = 0; at < piece.bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
      if (++piece.begin == piece.end) ++next_;
    }
  }

 private:
  static constexpr int kRowsAtOnce = 10, kMost = 10;
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

/// The last rows, fewer than kRows, in one call: a kernel of one row waits for each of its multiply-adds.
template <int kM, int kN, bool kAdd>
HWY_INLINE void LastRows(int64_t rows, int64_t depth, Matrix a, const float* b, int64_t b_row, float* c,
                         int64_t c_row) {
  if constexpr (kM > 0) {
    if (rows == kM)
      MicroKernel<kM, kN, kAdd>(depth, a.data, a.row, a.column, b, b_row, c, c_row);
    else
      LastRows<kM - 1, kN, kAdd>(rows, depth, a, b, b_row, c, c_row);
  }
}

template <int kN, bool kAdd>
void ProductOfGroup(Ahead& ahead, int64_t rows, int64_t depth, Matrix a, const float* b, int64_t b_row, float* c,
                    int64_t c_row) {
  int64_t m = 0;
  for (; m + kRows <= rows; m += kRows) {
    ahead.fetch_some();
    MicroKernel<kRows, kN, kAdd>(depth, a.data + m * a.row, a.row, a.column, b, b_row, c + m * c_row, c_row);
  }
  if (m == rows) return;
  ahead.fetch_some();
  a.data += m * a.row;
  LastRows<kRows - 1, kN, kAdd>(rows - m, depth, a, b, b_row, c + m * c_row, c_row);
}

template <bool kAdd>
void Product(Ahead& ahead, int64_t rows, int64_t vectors, int64_t depth, Matrix a, const float* b, int64_t b_row,
             float* c, int64_t c_row) {
  int64_t x = 0;
  for (; x + kGroup <= vectors; x += kGroup)
    ProductOfGroup<kGroup, kAdd>(ahead, rows, depth, a, b + x * kLanes, b_row, c + x * kLanes, c_row);
  for (; x < vectors; ++x) ProductOfGroup<1, kAdd>(ahead, rows, depth, a, b + x * kLanes, b_row, c + x * kLanes, c_row);
}

// --- Rows of one head to and from contiguous scratch, where they are f32 and padded with zeros ---

HWY_INLINE int64_t Padded(int64_t width) { return (width + 15) / 16 * 16; }

HWY_INLINE V LoadAsFloats(const float* p) { return Load(p); }

HWY_INLINE V LoadAsFloats(const bf16* p) {
  const hn::Rebind<uint16_t, Floats> halves;
  const hn::RebindToUnsigned<Floats> bits;
  const auto widened = hn::PromoteTo(bits, hn::LoadU(halves, reinterpret_cast<const uint16_t*>(p)));
  return hn::BitCast(Floats(), hn::ShiftLeft<16>(widened));
}

HWY_INLINE V LoadAsFloats(const f16* p) {
#if HWY_TARGET <= HWY_AVX2 || HWY_ARCH_ARM  // has the instruction; what Highway does without knows no infinity or NaN
  const hn::Rebind<hwy::float16_t, Floats> halves;
  return hn::PromoteTo(Floats(), hn::LoadU(halves, reinterpret_cast<const hwy::float16_t*>(p)));
#else
  float x[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) x[lane] = static_cast<float>(p[lane]);
  return Load(x);
#endif
}

/// to [count][padded] = scale * the rows at the positions of elements [begin, begin + count) of `strip`.
template <class T>
void PackRowsOf(const Rows& rows, Strip strip, int64_t begin, int64_t count, float scale, float* HWY_RESTRICT to) {
  constexpr int64_t kAhead = 6;  // rows lie far apart, where the hardware does not guess the next one
  constexpr int64_t kLine = 64 / sizeof(T);
  const int64_t width = rows.width, padded = Padded(width);
  const T* const from = static_cast<const T*>(rows.data);
  for (int64_t t = 0; t < count; ++t, to += padded) {
    const T* HWY_RESTRICT x = from + strip.position(begin + t) * rows.distance;
    const T* const ahead = from + strip.position(begin + std::min(t + kAhead, count - 1)) * rows.distance;
    for (int64_t c = 0; c < width; c += kLine) hwy::Prefetch(ahead + c);
    int64_t c = 0;
    for (; c + kLanes <= width; c += kLanes) Store(hn::Mul(Set(scale), LoadAsFloats(x + c)), to + c);
    for (; c < width; ++c) to[c] = scale * static_cast<float>(x[c]);
    for (; c < padded; ++c) to[c] = 0.0f;
  }
}

void PackRows(const Rows& rows, Strip strip, int64_t begin, int64_t count, float scale, float* HWY_RESTRICT to) {
  if (rows.dtype == DType::f32) return PackRowsOf<float>(rows, strip, begin, count, scale, to);
  if (rows.dtype == DType::bf16) return PackRowsOf<bf16>(rows, strip, begin, count, scale, to);
  PackRowsOf<f16>(rows, strip, begin, count, scale, to);
}

/// The rows at those positions += scale * from [count][padded].
void AddRows(const float* HWY_RESTRICT from, const ResultRows& rows, Strip strip, int64_t begin, int64_t count,
             float scale) {
  const int64_t padded = Padded(rows.width);
  for (int64_t t = 0; t < count; ++t, from += padded) {
    float* HWY_RESTRICT x = rows.data + strip.position(begin + t) * rows.distance;
    int64_t c = 0;
    for (; c + kLanes <= rows.width; c += kLanes) Store(hn::MulAdd(Set(scale), Load(from + c), Load(x + c)), x + c);
    for (; c < rows.width; ++c) x[c] += scale * from[c];
  }
}

/// The rows at those positions = 0.
void ClearRows(const ResultRows& rows, Strip strip, int64_t begin, int64_t count) {
  for (int64_t t = 0; t < count; ++t)
    std::memset(rows.data + strip.position(begin + t) * rows.distance, 0,
                static_cast<size_t>(rows.width) * sizeof(float));
}

#if HWY_TARGET == HWY_SCALAR

void TransposeToLanes(const float* from, int64_t width, float* HWY_RESTRICT to) {
  for (int64_t lane = 0; lane < kTile; ++lane)
    for (int64_t c = 0; c < width; ++c) to[c * kTile + lane] = from[lane * width + c];
}

#else

/// Transposes the 4 x 4 floats in each 128-bit block: element k of r[m] and element m of r[k] change places.
HWY_INLINE void TransposeBlocks(V (&r)[4]) {
  const V a = hn::InterleaveLower(Floats(), r[0], r[2]), b = hn::InterleaveUpper(Floats(), r[0], r[2]);
  const V c = hn::InterleaveLower(Floats(), r[1], r[3]), d = hn::InterleaveUpper(Floats(), r[1], r[3]);
  r[0] = hn::InterleaveLower(Floats(), a, c);
  r[1] = hn::InterleaveUpper(Floats(), a, c);
  r[2] = hn::InterleaveLower(Floats(), b, d);
  r[3] = hn::InterleaveUpper(Floats(), b, d);
}

/// A vector of 4-float blocks, block i from p + i * distance.
template <class D>
HWY_INLINE hn::Vec<D> LoadBlocks(D d, const float* p, int64_t distance) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return hn::LoadU(d, p);
  } else {
    const hn::Half<D> half;
    constexpr int64_t kBlocks = hn::MaxLanes(D()) / 8;
    return hn::Combine(d, LoadBlocks(half, p + kBlocks * distance, distance), LoadBlocks(half, p, distance));
  }
}

/// to [width][kTile] = the transpose of from [kTile][width]; width a multiple of 4.
void TransposeToLanes(const float* from, int64_t width, float* HWY_RESTRICT to) {
  for (int64_t x = 0; x < kVectors; ++x)
    for (int64_t c = 0; c < width; c += 4) {
      V r[4];
      LACUNA_UNROLL
      for (int m = 0; m < 4; ++m) r[m] = LoadBlocks(Floats(), from + (x * kLanes + m) * width + c, 4 * width);
      TransposeBlocks(r);
      LACUNA_UNROLL
      for (int m = 0; m < 4; ++m) Store(r[m], to + (c + m) * kTile + x * kLanes);
    }
}

#endif

}  // namespace lacuna::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LACUNA_OPS_SPARSE_ATTENTION_LANES_INL_H_

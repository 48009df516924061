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

#include "ops/sparse_attention/parts.h"

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
constexpr int kStep = 256;   // keys whose scores are held at once: [kStep][kTile] floats
constexpr int kChunk = 512;  // keys packed at once in forward

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
void ProductOfGroup(int64_t rows, int64_t depth, Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row) {
  int64_t m = 0;
  for (; m + kRows <= rows; m += kRows)
    MicroKernel<kRows, kN, kAdd>(depth, a.data + m * a.row, a.row, a.column, b, b_row, c + m * c_row, c_row);
  a.data += m * a.row;
  LastRows<kRows - 1, kN, kAdd>(rows - m, depth, a, b, b_row, c + m * c_row, c_row);
}

template <bool kAdd>
void Product(int64_t rows, int64_t vectors, int64_t depth, Matrix a, const float* b, int64_t b_row, float* c,
             int64_t c_row) {
  int64_t x = 0;
  for (; x + kGroup <= vectors; x += kGroup)
    ProductOfGroup<kGroup, kAdd>(rows, depth, a, b + x * kLanes, b_row, c + x * kLanes, c_row);
  for (; x < vectors; ++x) ProductOfGroup<1, kAdd>(rows, depth, a, b + x * kLanes, b_row, c + x * kLanes, c_row);
}

// --- Packing: rows of one head to and from contiguous scratch, whose rows are padded with zeros ---

HWY_INLINE int64_t Padded(int64_t width) { return (width + 15) / 16 * 16; }

/// to [count][padded] = scale * the rows of `from` at the positions of elements [begin, begin + count) of `strip`.
void PackRows(const float* from, int64_t row, int64_t width, Strip strip, int64_t begin, int64_t count, float scale,
              float* HWY_RESTRICT to) {
  constexpr int64_t kAhead = 6;  // rows lie far apart, where the hardware does not guess the next one
  const int64_t padded = Padded(width);
  for (int64_t t = 0; t < count; ++t, to += padded) {
    const float* HWY_RESTRICT x = from + strip.position(begin + t) * row;
    const float* const ahead = from + strip.position(begin + std::min(t + kAhead, count - 1)) * row;
    for (int64_t c = 0; c < width; c += 16) hwy::Prefetch(ahead + c);
    int64_t c = 0;
    for (; c + kLanes <= width; c += kLanes) Store(hn::Mul(Set(scale), Load(x + c)), to + c);
    for (; c < width; ++c) to[c] = scale * x[c];
    for (; c < padded; ++c) to[c] = 0.0f;
  }
}

/// The rows of `to` at those positions += scale * from [count][padded].
void AddRows(const float* HWY_RESTRICT from, int64_t row, int64_t width, Strip strip, int64_t begin, int64_t count,
             float scale, float* to) {
  const int64_t padded = Padded(width);
  for (int64_t t = 0; t < count; ++t, from += padded) {
    float* HWY_RESTRICT x = to + strip.position(begin + t) * row;
    int64_t c = 0;
    for (; c + kLanes <= width; c += kLanes) Store(hn::MulAdd(Set(scale), Load(from + c), Load(x + c)), x + c);
    for (; c < width; ++c) x[c] += scale * from[c];
  }
}

#if HWY_TARGET == HWY_SCALAR

void TransposeToLanes(const float* from, int64_t distance, int64_t width, float scale, float* HWY_RESTRICT to) {
  for (int64_t lane = 0; lane < kTile; ++lane)
    for (int64_t c = 0; c < width; ++c) to[c * kTile + lane] = scale * from[lane * distance + c];
}

void TransposeFromLanes(const float* HWY_RESTRICT from, int64_t width, const float* scale, float* to,
                        int64_t distance) {
  for (int64_t lane = 0; lane < kTile; ++lane)
    for (int64_t c = 0; c < width; ++c) to[lane * distance + c] = scale[lane] * from[c * kTile + lane];
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

template <class D>
HWY_INLINE void StoreBlocks(D d, hn::Vec<D> v, float* p, int64_t distance) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    hn::StoreU(v, d, p);
  } else {
    const hn::Half<D> half;
    constexpr int64_t kBlocks = hn::MaxLanes(D()) / 8;
    StoreBlocks(half, hn::LowerHalf(half, v), p, distance);
    StoreBlocks(half, hn::UpperHalf(half, v), p + kBlocks * distance, distance);
  }
}

/// to [width][kTile] = scale * the transpose of kTile rows of `from`, `distance` apart; width a multiple of 4.
void TransposeToLanes(const float* from, int64_t distance, int64_t width, float scale, float* HWY_RESTRICT to) {
  for (int64_t x = 0; x < kVectors; ++x)
    for (int64_t c = 0; c < width; c += 4) {
      V r[4];
      LACUNA_UNROLL
      for (int m = 0; m < 4; ++m) r[m] = LoadBlocks(Floats(), from + (x * kLanes + m) * distance + c, 4 * distance);
      TransposeBlocks(r);
      LACUNA_UNROLL
      for (int m = 0; m < 4; ++m) Store(hn::Mul(Set(scale), r[m]), to + (c + m) * kTile + x * kLanes);
    }
}

/// kTile rows of `to`, `distance` apart, = the transpose of from [width][kTile], each times its scale [kTile]; width a
/// multiple of 4.
void TransposeFromLanes(const float* HWY_RESTRICT from, int64_t width, const float* scale, float* to,
                        int64_t distance) {
  for (int64_t x = 0; x < kVectors; ++x)
    for (int64_t c = 0; c < width; c += 4) {
      V r[4];
      LACUNA_UNROLL
      for (int m = 0; m < 4; ++m) r[m] = hn::Mul(Load(scale + x * kLanes), Load(from + (c + m) * kTile + x * kLanes));
      TransposeBlocks(r);
      LACUNA_UNROLL
      for (int m = 0; m < 4; ++m) StoreBlocks(Floats(), r[m], to + (x * kLanes + m) * distance + c, 4 * distance);
    }
}

#endif

/// Whether the rows of a tile are better transposed where they lie than packed first: rows further apart than 2 KiB
/// fall in too few sets of the cache.
HWY_INLINE bool TransposeInPlace(int64_t lanes, int64_t width, int64_t distance) {
  return lanes == kTile && width % 4 == 0 && distance <= 512;
}

/// to [width][kTile] = scale * the rows of a tile, transposed; `packed` is scratch. Lanes that have no row are zero.
void LoadTile(const float* from, int64_t row, int64_t width, Strip strip, int64_t begin, int64_t lanes, float scale,
              float* packed, float* to) {
  if (TransposeInPlace(lanes, width, strip.period * row))
    return TransposeToLanes(from + strip.position(begin) * row, strip.period * row, width, scale, to);
  const int64_t padded = Padded(width);
  PackRows(from, row, width, strip, begin, lanes, 1.0f, packed);
  std::memset(packed + lanes * padded, 0, static_cast<size_t>((kTile - lanes) * padded) * sizeof(float));
  TransposeToLanes(packed, padded, padded, scale, to);
}

/// The rows of a tile = from [width][kTile] transposed, each times its scale.
void StoreTile(const float* from, int64_t row, int64_t width, const float* scale, Strip strip, int64_t begin,
               int64_t lanes, float* packed, float* to) {
  if (TransposeInPlace(lanes, width, strip.period * row))
    return TransposeFromLanes(from, width, scale, to + strip.position(begin) * row, strip.period * row);
  const int64_t padded = Padded(width);
  TransposeFromLanes(from, padded, scale, packed, padded);
  for (int64_t lane = 0; lane < lanes; ++lane)
    std::memcpy(to + strip.position(begin + lane) * row, packed + lane * padded,
                static_cast<size_t>(width) * sizeof(float));
}

}  // namespace lacuna::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LACUNA_OPS_SPARSE_ATTENTION_LANES_INL_H_

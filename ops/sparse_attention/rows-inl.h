// Rows of heads to and from contiguous scratch, where they are f32 and padded with zeros, and transposes. Compiled once
// for each instruction set (Highway's foreach_target).
#if defined(LACUNA_OPS_SPARSE_ATTENTION_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LACUNA_OPS_SPARSE_ATTENTION_ROWS_INL_H_
#undef LACUNA_OPS_SPARSE_ATTENTION_ROWS_INL_H_
#else
#define LACUNA_OPS_SPARSE_ATTENTION_ROWS_INL_H_
#endif

#include <hwy/cache_control.h>

#include <algorithm>
#include <cstring>

#include "ops/sparse_attention/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lacuna::cpu::HWY_NAMESPACE {

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

/// Neighbouring heads, whose rows follow each other, and the positions of the elements [begin, begin + count) of a
/// strip. In scratch they are [heads][count][padded].
struct Block {
  Strip strip;
  int64_t begin, count;
  int64_t heads = 1;
};

/// Rows lie far apart, where the hardware does not guess the next one: how many of them are fetched ahead.
HWY_INLINE int64_t RowsAhead(const Block& block) { return block.heads == 1 ? 6 : 3; }

/// to = scale * the rows of the block. Returns whether all are finite.
template <class T>
bool PackRowsOf(const Rows& rows, const Block& block, float scale, float* HWY_RESTRICT to) {
  constexpr int64_t kLine = 64 / sizeof(T);
  const int64_t width = rows.width, padded = Padded(width);
  const T* const from = static_cast<const T*>(rows.data);
  V zeros = hn::Zero(Floats());  // x - x is 0, or NaN where x is not finite
  float zero = 0.0f;
  for (int64_t t = 0; t < block.count; ++t) {
    const T* HWY_RESTRICT x = from + block.strip.position(block.begin + t) * rows.distance;
    const T* const later =
        from + block.strip.position(block.begin + std::min(t + RowsAhead(block), block.count - 1)) * rows.distance;
    for (int64_t c = 0; c < width * block.heads; c += kLine) hwy::Prefetch(later + c);
    for (int64_t h = 0; h < block.heads; ++h, x += width) {
      float* HWY_RESTRICT const row = to + (h * block.count + t) * padded;
      int64_t c = 0;
      const auto pack = [&] HWY_ATTR {
        const V values = LoadAsFloats(x + c);
        zeros = hn::Or(zeros, hn::Sub(values, values));
        Store(hn::Mul(Set(scale), values), row + c);
        c += kLanes;
      };
      while (c + 4 * kLanes <= width) {
        LACUNA_UNROLL
        for (int unrolled = 0; unrolled < 4; ++unrolled) pack();
      }
      while (c + kLanes <= width) pack();
      for (; c < width; ++c) {
        zero += static_cast<float>(x[c]) - static_cast<float>(x[c]);
        row[c] = scale * static_cast<float>(x[c]);
      }
      for (; c < padded; ++c) row[c] = 0.0f;
    }
  }
  return zero == 0.0f && hn::AllTrue(Floats(), hn::Eq(zeros, hn::Zero(Floats())));
}

bool PackRows(const Rows& rows, const Block& block, float scale, float* HWY_RESTRICT to) {
  if (rows.dtype == DType::f32) return PackRowsOf<float>(rows, block, scale, to);
  if (rows.dtype == DType::bf16) return PackRowsOf<bf16>(rows, block, scale, to);
  return PackRowsOf<f16>(rows, block, scale, to);
}

/// Rows ready for the products, and whether all are finite.
struct Packed {
  const float* rows;
  bool finite;
};

/// The rows of the block, times `scale` unless they are packed: then where they lie, and otherwise in `scratch`.
Packed PackedRows(const Rows& rows, const Block& block, float scale, float* scratch) {
  if (rows.packed) return {static_cast<const float*>(rows.data) + block.begin * rows.distance, rows.finite};
  const bool finite = PackRows(rows, block, scale, scratch);
  return {scratch, finite};
}

/// The rows of the block = scale * from, or += with kAdd.
template <bool kAdd>
void UnpackRows(const float* HWY_RESTRICT from, float scale, const ResultRows& rows, const Block& block) {
  const int64_t width = rows.width, padded = Padded(width);
  for (int64_t t = 0; t < block.count; ++t) {
    float* HWY_RESTRICT x = rows.data + block.strip.position(block.begin + t) * rows.distance;
    const float* const later =
        rows.data + block.strip.position(block.begin + std::min(t + RowsAhead(block), block.count - 1)) * rows.distance;
    for (int64_t c = 0; c < width * block.heads; c += 16) hwy::Prefetch(later + c);
    for (int64_t h = 0; h < block.heads; ++h, x += width) {
      const float* HWY_RESTRICT const row = from + (h * block.count + t) * padded;
      int64_t c = 0;
      const auto unpack = [&] HWY_ATTR {
        const V old = kAdd ? Load(x + c) : hn::Zero(Floats());
        Store(hn::MulAdd(Set(scale), Load(row + c), old), x + c);
        c += kLanes;
      };
      while (c + 4 * kLanes <= width) {
        LACUNA_UNROLL
        for (int unrolled = 0; unrolled < 4; ++unrolled) unpack();
      }
      while (c + kLanes <= width) unpack();
      for (; c < width; ++c) x[c] = scale * row[c] + (kAdd ? x[c] : 0.0f);
    }
  }
}

/// The rows of the block = 0.
void ClearRows(const ResultRows& rows, const Block& block) {
  for (int64_t t = 0; t < block.count; ++t)
    std::memset(rows.data + block.strip.position(block.begin + t) * rows.distance, 0,
                static_cast<size_t>(rows.width * block.heads) * sizeof(float));
}

#if HWY_TARGET == HWY_SCALAR

/// to [width][kTile] = the transpose of from [lanes][width], and anything in the lanes after those.
void TransposeToLanes(const float* from, int64_t width, int64_t lanes, float* HWY_RESTRICT to) {
  for (int64_t lane = 0; lane < lanes; ++lane)
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

/// to [width][kTile] = the transpose of from [lanes][width], and anything in the lanes after those. What follows `from`
/// is read up to kTile lanes; width a multiple of 4.
void TransposeToLanes(const float* from, int64_t width, int64_t lanes, float* HWY_RESTRICT to) {
  for (int64_t x = 0; x * kLanes < lanes; ++x)
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

#endif  // LACUNA_OPS_SPARSE_ATTENTION_ROWS_INL_H_

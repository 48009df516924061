// Element e of a sample takes 16-bit word e mod 8 of the Philox block of group e / 8. f32 is vectorised, groups in the
// lanes; f64 is the plain loop.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/dropout/dropout_cpu.cpp"
#include <hwy/foreach_target.h>
#include "ops/simd-inl.h"

#include "ops/dropout/dropout_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace lacuna::cpu::HWY_NAMESPACE {

// The 64-bit products of the lower half of each lane with `factor`.
template <class V64>
HWY_INLINE V64 multiply_lower_halves(V64 a, uint32_t factor) {
  const hn::DFromV<V64> d64;
#if HWY_TARGET == HWY_SCALAR
  return hn::Set(d64, uint64_t{static_cast<uint32_t>(hn::GetLane(a))} * factor);
#else
  const hn::Repartition<uint32_t, decltype(d64)> d32;
  return hn::MulEven(hn::BitCast(d32, a), hn::Set(d32, factor));
#endif
}

// Philox::block of as many consecutive groups as there are lanes. A lane of 64 bits holds one 32-bit word in its lower
// half; the products read only that half, so what the upper one holds never matters.
template <class D64, class V64>
HWY_INLINE void philox_words(D64 d64, V64 w0, V64 w1, V64 w2, V64 w3, Philox::Key key, uint64_t* HWY_RESTRICT words) {
  for (int round = 0; round < 10; ++round) {
    const V64 p0 = multiply_lower_halves(w0, 0xD2511F53u);
    const V64 p1 = multiply_lower_halves(w2, 0xCD9E8D57u);
    w0 = hn::Xor(hn::Xor(hn::ShiftRight<32>(p1), w1), hn::Set(d64, uint64_t{key.word[0]}));
    w2 = hn::Xor(hn::Xor(hn::ShiftRight<32>(p0), w3), hn::Set(d64, uint64_t{key.word[1]}));
    w1 = p1;
    w3 = p0;
    key.word[0] += 0x9E3779B9u;
    key.word[1] += 0xBB67AE85u;
  }
  const auto low = hn::Set(d64, uint64_t{0xffffffffu});
  hn::StoreInterleaved2(hn::Or(hn::And(w0, low), hn::ShiftLeft<32>(w1)),
                        hn::Or(hn::And(w2, low), hn::ShiftLeft<32>(w3)), d64, words);
}

// Elements [8 * group, 8 * group + count) of a sample; `counter` is that of `group`, whose lower 32 bits must not wrap.
// `residual` may be null.
void dropout_f32(const float* HWY_RESTRICT x, const float* HWY_RESTRICT residual, int64_t count, Philox::Block counter,
                 Philox::Key key, uint32_t threshold, float scale, float* HWY_RESTRICT y) {
  const auto store = [=](auto d, int64_t i, auto kept) HWY_ATTR {
    hn::StoreU(residual ? hn::Add(hn::LoadU(d, residual + i), kept) : kept, d, y + i);
  };
  if (threshold == 0) {
    for_each_vector(count, [&](auto d, int64_t i) HWY_ATTR { store(d, i, hn::LoadU(d, x + i)); });
    return;
  }
  const hn::ScalableTag<uint64_t> d64;
  constexpr int64_t kWords = HWY_MAX_BYTES / sizeof(uint16_t) * 2;  // two vectors of u64: one block for each lane
  const int64_t groups = static_cast<int64_t>(hn::Lanes(d64));
  alignas(HWY_MAX_BYTES) uint64_t words[2 * HWY_MAX_BYTES / sizeof(uint64_t)];
  alignas(HWY_MAX_BYTES) uint16_t halves[kWords];

  auto w0 = hn::Iota(d64, uint64_t{counter.word[0]});
  const auto w1 = hn::Set(d64, uint64_t{counter.word[1]}), w2 = hn::Set(d64, uint64_t{counter.word[2]}),
             w3 = hn::Set(d64, uint64_t{counter.word[3]});
  for (int64_t begin = 0; begin < count; begin += 8 * groups) {
    philox_words(d64, w0, w1, w2, w3, key, words);
    hwy::CopyBytes<sizeof(words)>(words, halves);  // little-endian: low half-words first
    w0 = hn::Add(w0, hn::Set(d64, static_cast<uint64_t>(groups)));
    const int64_t n = count - begin < 8 * groups ? count - begin : 8 * groups;
    for_each_vector(n, [&](auto d, int64_t j) HWY_ATTR {
      const hn::Rebind<uint16_t, decltype(d)> d16;
      const hn::RebindToSigned<decltype(d)> d32;
      const auto word = hn::PromoteTo(d32, hn::LoadU(d16, halves + j));
      const auto keep = hn::RebindMask(d, hn::Gt(word, hn::Set(d32, static_cast<int32_t>(threshold) - 1)));
      const auto scaled = hn::Mul(hn::LoadU(d, x + begin + j), hn::Set(d, scale));
      store(d, begin + j, hn::IfThenElseZero(keep, scaled));
    });
  }
}

}  // namespace lacuna::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>

#include "core/parallel.h"
#include "ops/dropout/dropout_cpu.h"
#include "ops/widen.h"

namespace lacuna::cpu {
namespace {

HWY_EXPORT(dropout_f32);

constexpr int64_t kElementsPerChunk = 16384;

// Elements [begin, end) of the sample at `place`, where they start at x, residual and y.
template <class T>
void plain_loop(const T* x, const T* residual, int64_t begin, int64_t end, const DropoutMask& mask, Rng::Place place,
                T* y) {
  const T scale = static_cast<T>(mask.scale());
  Philox::Block block{};
  for (int64_t e = begin; e < end; ++e) {
    if (mask.drops() && (e == begin || e % 8 == 0)) block = mask.rng.bits(place, e / 8);
    const uint32_t word = block.word[e % 8 / 2] >> (e % 2 * 16) & 0xffffu;
    const T kept = word < mask.threshold ? T{0} : x[e - begin] * scale;
    y[e - begin] = residual ? residual[e - begin] + kept : kept;
  }
}

void sample_range(const double* x, const double* residual, int64_t begin, int64_t end, const DropoutMask& mask,
                  Rng::Place place, double* y) {
  plain_loop(x, residual, begin, end, mask, place, y);
}

// The vectors begin with a group.
void sample_range(const float* x, const float* residual, int64_t begin, int64_t end, const DropoutMask& mask,
                  Rng::Place place, float* y) {
  const int64_t head = std::min(end - begin, (8 - begin % 8) % 8);
  if (head > 0) plain_loop(x, residual, begin, begin + head, mask, place, y);
  HWY_DYNAMIC_DISPATCH(dropout_f32)
  (x + head, residual ? residual + head : nullptr, end - begin - head, Rng::counter(place, (begin + head) / 8),
   mask.rng.key(), mask.threshold, static_cast<float>(mask.scale()), y + head);
}

template <class T>
void batch_range(const T* x, const T* residual, int64_t begin, int64_t end, int64_t size, const DropoutMask& mask,
                 T* y) {
  for (int64_t e = begin; e < end;) {
    const int64_t sample = e / size, stop = std::min(end, (sample + 1) * size), at = e - begin;
    Rng::Place place = mask.first;
    place.sample += sample;
    sample_range(x + at, residual ? residual + at : nullptr, e - sample * size, stop - sample * size, mask, place,
                 y + at);
    e = stop;
  }
}

}  // namespace

void dropout_range(const float* x, const float* residual, int64_t begin, int64_t end, int64_t size,
                   const DropoutMask& mask, float* y) {
  batch_range(x, residual, begin, end, size, mask, y);
}

void dropout_range(const double* x, const double* residual, int64_t begin, int64_t end, int64_t size,
                   const DropoutMask& mask, double* y) {
  batch_range(x, residual, begin, end, size, mask, y);
}

void dropout(Stream stream, const Tensor& x, const Tensor& residual, const DropoutMask& mask, const Tensor& y) {
  if (is_16_bit(y.dtype()))
    return write_rounded(y, [&](const Tensor& wide) {
      dropout(stream, widened(x), residual.defined() ? widened(residual) : Tensor(), mask, wide);
    });
  dispatch_f32_f64(x.dtype(), "dropout", [&]<class T>() {
    const T *const px = x.data<T>(), *const presidual = residual.defined() ? residual.data<T>() : nullptr;
    T* const py = y.data<T>();
    const auto body = [&, size = x.numel() / std::max<int64_t>(1, x.dim(0))](int64_t begin, int64_t end) {
      dropout_range(px + begin, presidual ? presidual + begin : nullptr, begin, end, size, mask, py + begin);
    };
    parallel_for(x.numel(), body, kElementsPerChunk);
  });
}

}  // namespace lacuna::cpu
#endif  // HWY_ONCE

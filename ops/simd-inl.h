// Helpers of the SIMD kernels, compiled once for each instruction set (Highway's foreach_target).
#if defined(LACUNA_OPS_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LACUNA_OPS_SIMD_INL_H_
#undef LACUNA_OPS_SIMD_INL_H_
#else
#define LACUNA_OPS_SIMD_INL_H_
#endif

#include <cstdint>

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace lacuna::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

/// Calls `body(d, j)` for the vectors of `d` that fill [0, count), first element j, then for the rest one by one.
template <class Body>
HWY_INLINE void for_each_vector(int64_t count, const Body& body) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> one;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t j = 0;
  for (; j + lanes <= count; j += lanes) body(d, j);
  for (; j < count; ++j) body(one, j);
}

/// e^x of a vector with x <= 0, within 2 units in the last place; NaN where x is NaN (Highway's Exp gives 0 there,
/// which would hide a diverged model).
template <class D, class V>
HWY_INLINE V exp_nonpositive(D d, V x) {
  return hn::IfThenElse(hn::Eq(x, x), hn::Exp(d, x), x);
}

}  // namespace lacuna::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard

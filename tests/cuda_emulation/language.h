#pragma once
// CUDA C++ as a host compiler reads it: keywords, built-in variables, barriers, shuffles, votes, atomics, arithmetic.

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "tests/cuda_emulation/execution.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __noinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __shared__ write_LACUNA_SHARED_or_LACUNA_DYNAMIC_SHARED
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__

#define threadIdx (::lacuna::emulation::this_thread->index)
#define blockIdx (::lacuna::emulation::this_block->index)
#define blockDim (::lacuna::emulation::this_block->block)
#define gridDim (::lacuna::emulation::this_block->grid)
inline constexpr int warpSize = 32;

using std::max;
using std::min;

namespace lacuna::emulation {

template <class T>
struct ShuffleLane {
  T in, out;
  int source;
};

template <class T>
void run_shuffle(const Warp<ShuffleLane<T>>& warp) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!warp.has(lane)) continue;
    const int source = warp[lane].source;
    if (!warp.has(source)) fail(Location::here(), "lane %d shuffles from lane %d, which does not take part", lane, source);
    warp[lane].out = warp[source].in;
  }
}

template <class T>
T shuffle(uint32_t mask, T value, int source, Location where) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8));
  ShuffleLane<T> lane{value, value, source};
  warp_collective<ShuffleLane<T>, run_shuffle<T>>(mask, lane, Meeting::anywhere, where);
  return lane.out;
}

struct VoteLane {
  bool in;
  uint32_t out;
};

inline void run_ballot(const Warp<VoteLane>& warp) {
  uint32_t votes = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (warp.has(lane) && warp[lane].in) votes |= 1u << lane;
  for (int lane = 0; lane < 32; ++lane)
    if (warp.has(lane)) warp[lane].out = votes;
}

inline uint32_t ballot(uint32_t mask, bool value, Location where) {
  VoteLane lane{value, 0};
  warp_collective<VoteLane, run_ballot>(mask, lane, Meeting::anywhere, where);
  return lane.out;
}

/// Sum, and, or, ... of the lanes.
template <class T, class Combine>
void run_reduce(const Warp<T>& warp) {
  const int first = std::countr_zero(warp.mask);
  T total = warp[first];
  for (int lane = first + 1; lane < 32; ++lane)
    if (warp.has(lane)) total = Combine()(total, warp[lane]);
  for (int lane = 0; lane < 32; ++lane)
    if (warp.has(lane)) warp[lane] = total;
}

template <class Combine, class T>
T reduce(uint32_t mask, T value, Location where) {
  static_assert(sizeof(T) == 4 && std::is_integral_v<T>);  // redux.sync
  warp_collective<T, run_reduce<T, Combine>>(mask, value, Meeting::anywhere, where);
  return value;
}

struct Minimum {
  template <class T>
  T operator()(T a, T b) const {
    return std::min(a, b);
  }
};

struct Maximum {
  template <class T>
  T operator()(T a, T b) const {
    return std::max(a, b);
  }
};

/// The lane from which a shuffle of `width` lanes takes its value: its own when `source` is outside its part.
inline int within(int source, int width) {
  const int lane = int(this_thread->lane), first = lane & ~(width - 1);
  return source >= first && source < first + width ? source : lane;
}

/// *p = change(*p), atomically; returns what was there before.
template <class T, class Change>
T atomically(T* p, Change change) {
  std::atomic_ref<T> value(*p);
  T old = value.load(std::memory_order_relaxed);
  while (!value.compare_exchange_weak(old, change(old), std::memory_order_relaxed)) {
  }
  return old;
}

}  // namespace lacuna::emulation

#define LACUNA_HERE ::lacuna::emulation::Location where = ::lacuna::emulation::Location::here()

// Barriers.
inline void __syncthreads(LACUNA_HERE) {
  ::lacuna::emulation::sync_barrier(0, 0, ::lacuna::emulation::Reduction::none, 0, where);
}
inline int __syncthreads_and(int value, LACUNA_HERE) {
  return ::lacuna::emulation::sync_barrier(0, 0, ::lacuna::emulation::Reduction::all, value, where);
}
inline int __syncthreads_or(int value, LACUNA_HERE) {
  return ::lacuna::emulation::sync_barrier(0, 0, ::lacuna::emulation::Reduction::any, value, where);
}
inline int __syncthreads_count(int value, LACUNA_HERE) {
  return ::lacuna::emulation::sync_barrier(0, 0, ::lacuna::emulation::Reduction::count, value, where);
}
inline void __syncwarp(uint32_t mask = 0xffffffffu, LACUNA_HERE) { ::lacuna::emulation::sync_warp(mask, where); }
inline void __threadfence() { ::lacuna::emulation::fence(); }
inline void __threadfence_block() { ::lacuna::emulation::fence(); }
inline void __nanosleep(unsigned, LACUNA_HERE) { ::lacuna::emulation::yield(where); }

// Shuffles, votes and reductions of a warp.
template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32, LACUNA_HERE) {
  const int first = int(::lacuna::emulation::this_thread->lane) & ~(width - 1);
  return ::lacuna::emulation::shuffle(mask, value, first | (source & (width - 1)), where);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lane_mask, int width = 32, LACUNA_HERE) {
  // May read an earlier part of the warp, not a later one.
  const int lane = int(::lacuna::emulation::this_thread->lane), source = lane ^ lane_mask;
  return ::lacuna::emulation::shuffle(mask, value, source < (lane & ~(width - 1)) + width ? source : lane, where);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned distance, int width = 32, LACUNA_HERE) {
  const int source = int(::lacuna::emulation::this_thread->lane + distance);
  return ::lacuna::emulation::shuffle(mask, value, ::lacuna::emulation::within(source, width), where);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned distance, int width = 32, LACUNA_HERE) {
  const int source = int(::lacuna::emulation::this_thread->lane) - int(distance);
  return ::lacuna::emulation::shuffle(mask, value, ::lacuna::emulation::within(source, width), where);
}
inline uint32_t __ballot_sync(uint32_t mask, int value, LACUNA_HERE) {
  return ::lacuna::emulation::ballot(mask, value != 0, where);
}
inline int __any_sync(uint32_t mask, int value, LACUNA_HERE) {
  return ::lacuna::emulation::ballot(mask, value != 0, where) != 0;
}
inline int __all_sync(uint32_t mask, int value, LACUNA_HERE) {
  return ::lacuna::emulation::ballot(mask, value == 0, where) == 0;
}
template <class T>
T __reduce_add_sync(uint32_t mask, T value, LACUNA_HERE) {
  return ::lacuna::emulation::reduce<std::plus<>>(mask, value, where);
}
template <class T>
T __reduce_min_sync(uint32_t mask, T value, LACUNA_HERE) {
  return ::lacuna::emulation::reduce<::lacuna::emulation::Minimum>(mask, value, where);
}
template <class T>
T __reduce_max_sync(uint32_t mask, T value, LACUNA_HERE) {
  return ::lacuna::emulation::reduce<::lacuna::emulation::Maximum>(mask, value, where);
}
template <class T>
T __reduce_and_sync(uint32_t mask, T value, LACUNA_HERE) {
  return ::lacuna::emulation::reduce<std::bit_and<>>(mask, value, where);
}
template <class T>
T __reduce_or_sync(uint32_t mask, T value, LACUNA_HERE) {
  return ::lacuna::emulation::reduce<std::bit_or<>>(mask, value, where);
}

// Atomics: relaxed, as on the device.
template <class T>
T atomicAdd(T* p, std::type_identity_t<T> x) {
  return ::lacuna::emulation::atomically(p, [x](T old) { return T(old + x); });
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> x) {
  return ::lacuna::emulation::atomically(p, [x](T old) { return std::max(old, x); });
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> x) {
  return ::lacuna::emulation::atomically(p, [x](T old) { return std::min(old, x); });
}
template <class T>
T atomicOr(T* p, std::type_identity_t<T> x) {
  return ::lacuna::emulation::atomically(p, [x](T old) { return T(old | x); });
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> x) {
  return ::lacuna::emulation::atomically(p, [x](T) { return x; });
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> x) {
  return ::lacuna::emulation::atomically(p, [=](T old) { return old == expected ? x : old; });
}
inline unsigned atomicInc(unsigned* p, unsigned limit) {
  return ::lacuna::emulation::atomically(p, [limit](unsigned old) { return old >= limit ? 0 : old + 1; });
}

// Arithmetic. The fast approximations are exact here.
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
inline int __ffs(int x) { return x ? std::countr_zero(unsigned(x)) + 1 : 0; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t{a} * b >> 32); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __saturatef(float x) { return std::fmin(std::fmax(x, 0.0f), 1.0f); }
inline float __expf(float x) noexcept { return std::exp(x); }
inline float __logf(float x) noexcept { return std::log(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }

// Loads and stores with a hint for the caches.
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, std::type_identity_t<T> x) {
  *p = x;
}
template <class T>
void __stcg(T* p, std::type_identity_t<T> x) {
  *p = x;
}

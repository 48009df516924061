#pragma once
// The host half of core/cuda/hopper.h: mbarriers, the copy unit and the products of warpgroups, emulated.

#include "tests/cuda_emulation/async_execution.h"
#include "tests/cuda_emulation/instructions.h"
#include "tests/cuda_emulation/language.h"

namespace lacuna::emulation {

template <class T>
void widen(const uint16_t* x, float* y, size_t count) {
  for (size_t i = 0; i < count; ++i) y[i] = gpu::element_of<T>(x[i], 0);
}

}  // namespace lacuna::emulation

namespace lacuna::gpu {

struct TensorMap {
  TensorBox tensor;
};

inline TensorMap encode_tensor_map(const TensorBox& tensor, bool) { return {tensor}; }

inline uint32_t shared_address(const void* p) { return emulation::shared_address(p); }

inline void mbarrier_init(uint64_t* barrier, int arrivals, LACUNA_HERE) {
  emulation::init_mbarrier(barrier, arrivals, where);
}
inline void mbarrier_arrive(uint64_t* barrier, LACUNA_HERE) { emulation::arrive_at_mbarrier(barrier, 0, where); }
inline void mbarrier_arrive_expecting(uint64_t* barrier, int bytes, LACUNA_HERE) {
  emulation::arrive_at_mbarrier(barrier, bytes, where);
}
inline void mbarrier_wait(uint64_t* barrier, int parity, LACUNA_HERE) {
  emulation::wait_for_mbarrier(barrier, parity, where);
}

inline void copy_box(void* to, const TensorMap& map, uint64_t* barrier, const int (&at)[kTensorRank], LACUNA_HERE) {
  emulation::copy_box(to, map.tensor, barrier, at, where);
}
inline void fence_proxy_async(LACUNA_HERE) { emulation::fence_proxy_async(where); }

template <int kRegisters>
void decrease_registers() {
  static_assert(24 <= kRegisters && kRegisters <= 256 && kRegisters % 8 == 0);
}
template <int kRegisters>
void increase_registers() {
  static_assert(24 <= kRegisters && kRegisters <= 256 && kRegisters % 8 == 0);
}

template <int kCount>
void wgmma_fence(float (&d)[kCount], LACUNA_HERE) {
  emulation::fence_registers({d, sizeof(d)}, {}, where);
}
template <int kCount, int kSteps>
void wgmma_fence(float (&d)[kCount], uint32_t (&a)[kSteps][4], LACUNA_HERE) {
  emulation::fence_registers({d, sizeof(d)}, {a, sizeof(a)}, where);
}
inline void wgmma_commit(LACUNA_HERE) { emulation::commit_products(where); }
template <int kGroupsLeft, int kCount>
void wgmma_wait(float (&d)[kCount], LACUNA_HERE) {
  emulation::wait_for_products(kGroupsLeft, d, where);
}
inline void compute_here(float x, LACUNA_HERE) {
  if (x < 0.0f) emulation::fail(where, "compute_here takes what is not negative, got %g", double(x));
}

template <class T, int kN, bool kColumns>
void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, bool add, LACUNA_HERE) {
  emulation::multiply({d, nullptr, a, b, kN, kColumns, add, emulation::widen<T>}, where);
}
template <class T, int kN, bool kColumns>
void wgmma(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool add, LACUNA_HERE) {
  emulation::multiply({d, a, 0, b, kN, kColumns, add, emulation::widen<T>}, where);
}

}  // namespace lacuna::gpu

#pragma once
// What sm_90a adds to the device language of gpu.h: mbarriers, copies of tiles by the copy unit (TMA), and products by
// warpgroups, 128 threads of which the first is a multiple of 128 (wgmma). nvcc compiles the first half, in which every
// wrapper is one PTX instruction; other compilers take theirs from the emulator of the tests.
//
// Kernels that use it are compiled for sm_90a alone: their bodies stand between #if LACUNA_SM90A_CODE and #endif.

#include <cstdint>

#include "core/cuda/gpu.h"
#include "core/cuda/tensor_box.h"
#include "core/error.h"

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define LACUNA_SM90A_CODE 1
#else
#define LACUNA_SM90A_CODE 0
#endif

#ifdef __CUDACC__

#include <cuda.h>

namespace lacuna::gpu {

/// A TensorBox as the copy unit reads it. Kernels take it in a parameter that is `const __grid_constant__`.
using TensorMap = CUtensorMap;

/// cuTensorMapEncodeTiled, which the driver has and the runtime does not.
inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  static const auto encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    const cudaError_t status =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
#else
    const cudaError_t status = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
    check(status == cudaSuccess && found == cudaDriverEntryPointSuccess,
          "tensor map: the NVIDIA driver lacks cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  return encoder;
}

inline TensorMap encode_tensor_map(const TensorBox& t, bool bf16) {
  constexpr CUtensorMapSwizzle kSwizzles[] = {CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_32B,
                                              CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_SWIZZLE_128B};
  static_assert(sizeof(cuuint64_t) == sizeof(uint64_t) && sizeof(cuuint32_t) == sizeof(uint32_t));
  const cuuint32_t every_element[kTensorRank] = {1, 1, 1, 1, 1};
  TensorMap map;
  const CUresult result = tensor_map_encoder()(
      &map, bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, kTensorRank,
      const_cast<void*>(t.data), reinterpret_cast<const cuuint64_t*>(t.sizes),
      reinterpret_cast<const cuuint64_t*>(t.strides + 1), t.box, every_element, CU_TENSOR_MAP_INTERLEAVE_NONE,
      kSwizzles[static_cast<int>(t.swizzle)], CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(result == CUDA_SUCCESS, "tensor map: the driver refuses it, error ", static_cast<int>(result));
  return map;
}

/// Makes *barrier, 8 bytes of shared memory, one whose phase ends when `arrivals` threads have arrived and all bytes
/// that were announced are there. Others may use it after fence_proxy_async() and a barrier of the block.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

/// Arrives: what this thread did before is seen by those who wait for the phase.
__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

/// Announces bytes that the copy unit will bring in this phase, and arrives.
__device__ __forceinline__ void mbarrier_arrive_expecting(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

/// Waits until the phase of this parity has ended: returns at once when the phase under way has the other one. Phases
/// alternate, from 0 on.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, int parity) {
  uint32_t ended;
  do {
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(ended)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
  } while (!ended);
}

/// Begins to copy the box whose first element is at the coordinates to shared memory, dense but for the swizzle; what
/// lies outside the tensor becomes 0. Its bytes count for the phase of the barrier.
__device__ __forceinline__ void copy_box(void* to, const TensorMap& map, uint64_t* barrier,
                                         const int (&at)[kTensorRank]) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
      : "memory");
}

/// Orders this thread's ordinary accesses to shared memory before it against those of the copy unit and of wgmma after.
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Gives registers of this warpgroup back, or takes some, until it has kRegisters a thread.
template <int kRegisters>
__device__ __forceinline__ void decrease_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void increase_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/// Keeps the compiler from moving accesses to registers over this place.
template <int kCount>
__device__ __forceinline__ void pin(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

/// Orders accesses to registers before it against the wgmma after. To be called before the first wgmma that uses an
/// accumulator or an operand in registers, and whenever they were accessed since.
template <int kCount>
__device__ __forceinline__ void wgmma_fence(float (&d)[kCount]) {
  pin(d);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
template <int kCount, int kSteps>
__device__ __forceinline__ void wgmma_fence(float (&d)[kCount], uint32_t (&a)[kSteps][4]) {
  pin(d);
#pragma unroll
  for (int i = 0; i < 4 * kSteps; ++i) asm volatile("" : "+r"(a[i / 4][i % 4])::"memory");
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/// Closes a group: all wgmma since the last one.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/// Waits until at most kGroupsLeft groups, the latest ones, are under way; d is among what is finished then.
template <int kGroupsLeft, int kCount>
__device__ __forceinline__ void wgmma_wait(float (&d)[kCount]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroupsLeft) : "memory");
  pin(d);
}

/// Computes x, which is not negative, before what follows. Otherwise ptxas moves a wait for products ahead of the
/// arithmetic that was to run beside them.
__device__ __forceinline__ void compute_here(float x) {
  asm volatile("{\n.reg .pred p;\nsetp.lt.f32 p, %0, 0f00000000;\n@p trap;\n}" ::"f"(x) : "memory");
}

// The registers of d as operands of an instruction.
#define LACUNA_D8(i)                                                                                          \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define LACUNA_D32 LACUNA_D8(0), LACUNA_D8(8), LACUNA_D8(16), LACUNA_D8(24)
#define LACUNA_D64 LACUNA_D32, LACUNA_D8(32), LACUNA_D8(40), LACUNA_D8(48), LACUNA_D8(56)
#define LACUNA_D32_NAMES                                                                                   \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
  "%28,%29,%30,%31"
#define LACUNA_D64_NAMES                                                                                      \
  LACUNA_D32_NAMES                                                                                            \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57," \
  "%58,%59,%60,%61,%62,%63"

/// d (+)= a b: a [64][16] and b [16][kN] by descriptors of shared memory, elements T (__nv_bfloat16 or __half); d is
/// overwritten unless `add`. Thread 32 w + 4 g + t of the warpgroup has in d[4 j + e] row 16 w + g + 8 (e / 2), column
/// 8 j + 2 t + e % 2. a and b are K-major (consecutive k are neighbours); with kColumns b is MN-major.
/// d and what the descriptors name must be left alone until wgmma_wait says so.
template <class T, int kN, bool kColumns>
__device__ __forceinline__ void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, bool add) {
  static_assert(kN == 128, "instantiated as kernels need it");
#define LACUNA_WGMMA(type)                                                               \
  asm volatile(                                                                          \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                       \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" LACUNA_D64_NAMES \
      "}, %64, %65, p, 1, 1, 0, %67;\n}"                                                 \
      : LACUNA_D64                                                                       \
      : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(static_cast<int>(kColumns)))
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    LACUNA_WGMMA("bf16");
  else
    LACUNA_WGMMA("f16");
#undef LACUNA_WGMMA
}

/// The same with a in registers: those of mma_16816 for rows 16 w .. 16 w + 15.
template <class T, int kN, bool kColumns>
__device__ __forceinline__ void wgmma(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool add) {
  static_assert(kN == 64, "instantiated as kernels need it");
#define LACUNA_WGMMA(type)                                                              \
  asm volatile(                                                                         \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"                                      \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" LACUNA_D32_NAMES \
      "}, {%32,%33,%34,%35}, %36, p, 1, 1, %38;\n}"                                     \
      : LACUNA_D32                                                                      \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)), \
        "n"(static_cast<int>(kColumns)))
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    LACUNA_WGMMA("bf16");
  else
    LACUNA_WGMMA("f16");
#undef LACUNA_WGMMA
}

#undef LACUNA_D8
#undef LACUNA_D32
#undef LACUNA_D64
#undef LACUNA_D32_NAMES
#undef LACUNA_D64_NAMES

}  // namespace lacuna::gpu

#else
#include "tests/cuda_emulation/hopper.h"
#endif

namespace lacuna::gpu {

/// The map of boxes of a tensor of T (__nv_bfloat16 or __half) of rank 1 to 5, which gets dimensions of size 1 up to 5;
/// strides in elements, the first is 1. Throws Error, naming the dimension, unless it obeys the rules of
/// cuTensorMapEncodeTiled.
template <class T, int kRank>
TensorMap tensor_map(const T* data, const int64_t (&sizes)[kRank], const int64_t (&strides)[kRank],
                     const int (&box)[kRank], Swizzle swizzle) {
  static_assert(sizeof(T) == 2 && 1 <= kRank && kRank <= kTensorRank);
  TensorBox t{data, {1, 1, 1, 1, 1}, {16, 16, 16, 16, 16}, {1, 1, 1, 1, 1}, swizzle};
  check(reinterpret_cast<uintptr_t>(data) % 16 == 0, "tensor map: the address must be a multiple of 16 bytes");
  check(strides[0] == 1, "tensor map: stride 0 must be 1, got ", strides[0]);
  const int64_t row_bytes = box[0] * int64_t{sizeof(T)};
  check(row_bytes % 16 == 0, "tensor map: rows of a box must be a multiple of 16 bytes, got ", row_bytes);
  const int64_t span = swizzle == Swizzle::none ? row_bytes : int64_t{16} << static_cast<int>(swizzle);
  check(row_bytes <= span, "tensor map: rows of a box must be at most the swizzle's ", span, " bytes, got ", row_bytes);
  for (int i = 0; i < kRank; ++i) {
    const int64_t stride = strides[i] * int64_t{sizeof(T)};
    check(1 <= sizes[i] && sizes[i] <= int64_t{1} << 32, "tensor map: size ", i, " must be 1 to 2^32, got ", sizes[i]);
    check(i == 0 || (stride > 0 && stride % 16 == 0 && stride < int64_t{1} << 40), "tensor map: stride ", i,
          " must be a positive multiple of 16 bytes below 2^40, got ", stride);
    check(1 <= box[i] && box[i] <= 256, "tensor map: box ", i, " must be 1 to 256, got ", box[i]);
    t.sizes[i] = static_cast<uint64_t>(sizes[i]);
    t.strides[i] = static_cast<uint64_t>(stride);
    t.box[i] = static_cast<uint32_t>(box[i]);
  }
  return encode_tensor_map(t, std::is_same_v<T, __nv_bfloat16>);
}

/// A matrix in shared memory as wgmma takes it: in rows of 16 (no swizzle), 32, 64 or 128 bytes, eight rows a group.
///   K-major     a row holds consecutive k of one m or n; groups of eight m or n lie `stride` bytes apart
///   MN-major    a row holds consecutive m or n of one k; groups of eight k lie `stride` apart, rows further on in m or
///               n `leading`
/// Without swizzle, K-major: pieces of eight k lie `leading` apart; MN-major: pieces of eight m or n lie `stride`
/// apart, and groups of eight k `leading`. Groups start at multiples of eight rows of bytes, so that the swizzle of
/// addresses is that of rows; p may be moved along k within rows. Source: PTX ISA, "Matrix descriptor format";
/// canonical layouts of CUTLASS's mma_traits_sm90_gmma.hpp.
__device__ __forceinline__ uint64_t matrix_descriptor(const void* p, int leading, int stride, Swizzle swizzle) {
  const uint64_t mode = (4 - static_cast<int>(swizzle)) % 4;
  return (shared_address(p) & 0x3ffff) >> 4 | uint64_t(leading >> 4 & 0x3fff) << 16 |
         uint64_t(stride >> 4 & 0x3fff) << 32 | mode << 62;
}

}  // namespace lacuna::gpu

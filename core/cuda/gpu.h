#pragma once
// The device language: the one header that the source of a kernel includes for it. nvcc compiles the first half, in which
// every wrapper is one PTX instruction; other compilers take their half from the emulator of the tests.
//
// Where CUDA C++ has a keyword that a host compiler cannot follow, a macro stands: LACUNA_SHARED for a __shared__
// variable, LACUNA_DYNAMIC_SHARED for `extern __shared__`, and launch() for <<<>>>.

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>

#include "core/device.h"
#include "core/error.h"

/// T* name: the block's dynamic shared memory.
#define LACUNA_DYNAMIC_SHARED(T, name)                                       \
  extern __shared__ __align__(1024) unsigned char lacuna_dynamic_shared_[];  \
  T* name = reinterpret_cast<T*>(lacuna_dynamic_shared_)

/// A static shared variable: LACUNA_SHARED(float, tile, [4][32]) declares float tile[4][32].
#define LACUNA_SHARED(T, name, ...) __shared__ T name __VA_ARGS__

namespace lacuna::gpu {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/// Begins to copy kBytes (4, 8 or 16, and so aligned) from global to shared memory; unless `valid`, writes zeros and reads
/// nothing. Done when cp_async_wait says so, for this thread; for others after a barrier beyond that.
template <int kBytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, bool valid) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  const uint32_t address = shared_address(shared);
  const int bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16)  // not through L1
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(global), "n"(kBytes), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool valid) {
  cp_async<16>(shared, global, valid);
}

/// Closes a group of copies: all that this thread began since the last one.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits until at most kGroupsLeft groups, the latest ones, are still being copied.
template <int kGroupsLeft>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
}

/// Loads four 8x8 matrices of 16-bit elements from shared memory; lanes 8m .. 8m+7 give the addresses of the rows of
/// matrix m. Lane l gets in r[m] row l/4, columns 2(l%4) and the next.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

/// As ldmatrix_x4, each matrix transposed: column l/4, rows 2(l%4) and the next.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

/// Two matrices; the addresses of lanes 16 .. 31 do not count.
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

/// d += a b, 16x8x16, of elements T (__nv_bfloat16 or __half), accumulated in f32. Of lane l = 4g + t/2:
///   a[i]     rows g + 8 (i & 1), columns t + 8 (i >> 1) and the next
///   b0, b1   rows t and the next, rows t + 8 and the next; column g
///   d[i]     row g + 8 (i >> 1), column t + (i & 1)
template <class T>
__device__ __forceinline__ void mma_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  static_assert(std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>, "mma_16816 multiplies bf16 or f16");
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Barrier `id` (1 to 15) of `threads` threads, whole warps: waits for the others, or only says that it has come.
__device__ __forceinline__ void bar_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void bar_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// 2^x, with an error of 2 ulp; results below the normal numbers are 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Why the current device cannot run `kernel`, which was compiled for others or for a newer driver; "" if it can.
template <class... Parameters>
std::string why_no_code(void (*kernel)(Parameters...)) {
  cudaFuncAttributes attributes{};
  const cudaError_t status = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel));
  if (status == cudaSuccess) return "";
  cudaGetLastError();  // an error is reported here, not by the next call
  return cudaGetErrorString(status);
}

[[noreturn]] inline void fail_launch(const void* kernel, const std::string& what, cudaError_t status) {
  const char* name = nullptr;
  if (cudaFuncGetName(&name, kernel) != cudaSuccess) name = "a kernel";
  throw GpuError(concat(name, ": ", what, ": ", cudaGetErrorString(status)));
}

/// Launches kernel<<<grid, block, shared_bytes>>>(args...) on the stream. Throws GpuError, naming the kernel and these
/// sizes, when the driver refuses it.
template <class... Parameters>
void launch(Stream stream, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            std::type_identity_t<Parameters>... args) {
  const auto* function = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > 0) {
    constexpr size_t kUnasked = 48 * 1024;  // what a kernel gets, its static variables among them
    cudaFuncAttributes now{};
    cudaError_t status = cudaFuncGetAttributes(&now, function);
    const size_t most = std::max(shared_bytes, static_cast<size_t>(now.maxDynamicSharedSizeBytes));  // never lowered
    if (status == cudaSuccess && now.sharedSizeBytes + shared_bytes > kUnasked)
      status = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most));
    if (status != cudaSuccess) fail_launch(function, concat(shared_bytes, " bytes of shared memory"), status);
  }
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&args))..., nullptr};
  const cudaError_t status =
      cudaLaunchKernel(function, grid, block, pointers, shared_bytes, static_cast<cudaStream_t>(stream.native));
  if (status != cudaSuccess)
    fail_launch(function,
                concat("launch of ", grid.x, " x ", grid.y, " x ", grid.z, " blocks of ", block.x * block.y * block.z,
                       " threads with ", shared_bytes, " bytes of shared memory"),
                status);
}

}  // namespace lacuna::gpu

#else
#include "tests/cuda_emulation/emulator.h"
#endif

#include <cstring>

namespace lacuna::gpu {

/// Two numbers rounded to T and packed into a register of a fragment, the first in the low half.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t bits;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    memcpy(&bits, &pair, sizeof(bits));
  } else {
    static_assert(std::is_same_v<T, __half>, "pack rounds to bf16 or f16");
    const __half2 pair = __floats2half2_rn(low, high);
    memcpy(&bits, &pair, sizeof(bits));
  }
  return bits;
}

/// The inverse of pack.
template <class T>
__device__ __forceinline__ float2 unpack(uint32_t bits) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    __nv_bfloat162 pair;
    memcpy(static_cast<void*>(&pair), &bits, sizeof(bits));
    return __bfloat1622float2(pair);
  } else {
    static_assert(std::is_same_v<T, __half>, "unpack reads bf16 or f16");
    __half2 pair;
    memcpy(static_cast<void*>(&pair), &bits, sizeof(bits));
    return __half22float2(pair);
  }
}

}  // namespace lacuna::gpu

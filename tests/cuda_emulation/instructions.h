#pragma once
// The PTX instructions of core/cuda/gpu.h, emulated. Fragments are laid out as PTX ISA 8.x defines them, sections
// "Warp-level matrix load instruction: ldmatrix" and "Matrix fragments for mma.m16n8k16".

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "tests/cuda_emulation/execution.h"
#include "tests/cuda_emulation/language.h"

namespace lacuna::gpu {

// Whole words, not memcpy or memset: g++ does not show those to ThreadSanitizer when it inlines them.
using CopiedWord [[gnu::may_alias]] = uint32_t;

template <int kBytes>
void cp_async(void* shared, const void* global, bool valid, LACUNA_HERE) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emulation::check_shared(shared, kBytes, kBytes, "the destination of cp.async", where);
  if (reinterpret_cast<uintptr_t>(global) % kBytes)
    emulation::fail(where, "the source of cp.async is not aligned to %d bytes", kBytes);
  // Until the wait there is NaN at the destination: who reads too early gets it.
  for (int i = 0; i < kBytes / 4; ++i) static_cast<CopiedWord*>(shared)[i] = ~0u;
  if (valid)  // touched now, so that a fault is reported here
    for (int i = 0; i < kBytes / 4; ++i) static_cast<void>(static_cast<const volatile uint32_t*>(global)[i]);
  emulation::issue_copy({shared, global, kBytes, valid ? kBytes : 0});
}

inline void cp_async16(void* shared, const void* global, bool valid, LACUNA_HERE) {
  cp_async<16>(shared, global, valid, where);
}

inline void cp_async_commit() { emulation::commit_copies(); }

template <int kGroupsLeft>
void cp_async_wait() {
  for (emulation::Copy copy; emulation::next_copy(kGroupsLeft, copy);)
    for (int i = 0; i < copy.bytes / 4; ++i)
      static_cast<CopiedWord*>(copy.to)[i] =
          4 * i < copy.valid_bytes ? static_cast<const CopiedWord*>(copy.from)[i] : 0;
}

/// One lane of ldmatrix: lanes 8m .. 8m+7 name the rows of matrix m.
template <int kMatrices>
struct MatrixLane {
  const void* row;
  uint32_t data[4];  // the eight elements of that row
  uint32_t out[kMatrices];
};

/// Lane l gets row l/4, columns 2(l%4) and the next; transposed, column l/4, rows 2(l%4) and the next.
template <int kMatrices, bool kTransposed>
void run_ldmatrix(const emulation::Warp<MatrixLane<kMatrices>>& warp) {
  if (!warp.full()) emulation::fail(emulation::Location::here(), "ldmatrix needs all 32 lanes, got %08x", warp.mask);
  int conflicts = 0;
  for (int m = 0; m < kMatrices; ++m) {
    uint16_t matrix[8][8];
    int rows_in_bank[8] = {};  // of eight groups of four banks
    for (int r = 0; r < 8; ++r) {
      const auto& lane = warp[8 * m + r];
      std::memcpy(matrix[r], lane.data, sizeof(matrix[r]));
      ++rows_in_bank[reinterpret_cast<uintptr_t>(lane.row) / 16 % 8];
    }
    conflicts += *std::max_element(rows_in_bank, rows_in_bank + 8) - 1;
    for (int l = 0; l < 32; ++l) {
      const int i = l / 4, j = 2 * (l % 4);
      const uint32_t low = kTransposed ? matrix[j][i] : matrix[i][j];
      const uint32_t high = kTransposed ? matrix[j + 1][i] : matrix[i][j + 1];
      warp[l].out[m] = low | high << 16;
    }
  }
  emulation::count_ldmatrix(kMatrices, conflicts);
}

template <int kMatrices, bool kTransposed>
void ldmatrix(uint32_t (&r)[kMatrices], const void* row, emulation::Location where) {
  MatrixLane<kMatrices> lane{row, {}, {}};
  // Each lane reads the row that it names, so that the sanitizers see the access at this place. Only the rows of the
  // first 8 * kMatrices lanes count.
  if (int(emulation::this_thread->lane) < 8 * kMatrices) {
    emulation::check_shared(row, 16, 16, "a row of ldmatrix", where);
    for (int i = 0; i < 4; ++i) lane.data[i] = static_cast<const CopiedWord*>(row)[i];
  }
  emulation::warp_collective<MatrixLane<kMatrices>, run_ldmatrix<kMatrices, kTransposed>>(
      0xffffffffu, lane, emulation::Meeting::aligned, where);
  for (int m = 0; m < kMatrices; ++m) r[m] = lane.out[m];
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, LACUNA_HERE) { ldmatrix<4, false>(r, row, where); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, LACUNA_HERE) { ldmatrix<4, true>(r, row, where); }
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row, LACUNA_HERE) { ldmatrix<2, false>(r, row, where); }
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, LACUNA_HERE) { ldmatrix<2, true>(r, row, where); }

template <class T>
float element_of(uint32_t packed, int i) {
  const uint16_t bits = uint16_t(packed >> (16 * i));
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return std::bit_cast<float>(uint32_t{bits} << 16);
  } else {
    static_assert(std::is_same_v<T, __half>, "mma_16816 multiplies bf16 or f16");
#ifdef __FLT16_MAX__
    return float(std::bit_cast<_Float16>(bits));  // many times faster than __half2float
#else
    return __half2float(__ushort_as_half(bits));
#endif
  }
}

struct MmaLane {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

/// d += a b. Row g and columns t, t + 1 of the upper left 8x8 corner belong to lane 4g + t/2.
///   a register i  rows g + 8 (i & 1), columns t + 8 (i >> 1) and the next
///   b register i  rows t + 8 i and the next, column g
///   d element i   row g + 8 (i >> 1), column t + (i & 1)
template <class T>
void run_mma(const emulation::Warp<MmaLane>& warp) {
  if (!warp.full()) emulation::fail(emulation::Location::here(), "mma.sync needs all 32 lanes, got %08x", warp.mask);
  float a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const MmaLane& x = warp[lane];
    const int g = lane / 4, t = 2 * (lane % 4);
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) a[g + 8 * (i & 1)][t + 8 * (i >> 1) + half] = element_of<T>(x.a[i], half);
      for (int i = 0; i < 2; ++i) b[t + 8 * i + half][g] = element_of<T>(x.b[i], half);
    }
    for (int i = 0; i < 4; ++i) d[g + 8 * (i >> 1)][t + (i & 1)] = x.d[i];
  }
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) warp[lane].d[i] = d[g + 8 * (i >> 1)][t + (i & 1)];
  }
}

template <class T>
void mma_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, LACUNA_HERE) {
  MmaLane lane{d, a, {b0, b1}};
  emulation::warp_collective<MmaLane, run_mma<T>>(0xffffffffu, lane, emulation::Meeting::aligned, where);
}

inline void bar_sync(int id, int threads, LACUNA_HERE) {
  emulation::sync_barrier(id, threads, emulation::Reduction::none, 0, where);
}
inline void bar_arrive(int id, int threads, LACUNA_HERE) { emulation::arrive_at_barrier(id, threads, where); }

/// As wrong as the instruction may be: by up to 2 ulp, in a way that only x decides, but exact at 0; 0 below the normal
/// numbers.
inline float exp2_approx(float x) {
  const float y = std::exp2(x);
  if (y < std::numeric_limits<float>::min()) return 0.0f;
  if (x == 0.0f || !std::isfinite(y)) return y;
  const uint32_t hash = std::bit_cast<uint32_t>(x) * 2654435761u >> 16;
  const float wrong = std::bit_cast<float>(std::bit_cast<uint32_t>(y) + hash % 5 - 2);
  return std::isfinite(wrong) ? wrong : y;
}

}  // namespace lacuna::gpu

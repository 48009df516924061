// Copies and matrix instructions against the layouts of the PTX ISA, sections "Warp-level matrix load instruction:
// ldmatrix" and "Matrix fragments for mma.m16n8k16 with floating point type".

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "core/cuda/gpu.h"

using namespace lacuna;

namespace {

// Element (r, c) of the matrices is 100 m + 10 r + c. Rows lie `pitch` bytes apart.
template <int kMatrices, bool kTransposed>
__global__ void ldmatrix_kernel(uint32_t* out, int pitch) {
  LACUNA_DYNAMIC_SHARED(unsigned char, memory);
  const int lane = int(threadIdx.x);
  if (lane < 8 * kMatrices)
    for (int c = 0; c < 8; ++c)
      reinterpret_cast<uint16_t*>(memory + lane * pitch)[c] = uint16_t(lane / 8 * 100 + lane % 8 * 10 + c);
  __syncwarp();
  uint32_t r[kMatrices];
  const unsigned char* row = memory + lane % (8 * kMatrices) * pitch;
  if constexpr (kMatrices == 4)
    kTransposed ? gpu::ldmatrix_x4_trans(r, row) : gpu::ldmatrix_x4(r, row);
  else
    kTransposed ? gpu::ldmatrix_x2_trans(r, row) : gpu::ldmatrix_x2(r, row);
  for (int m = 0; m < kMatrices; ++m) out[lane * kMatrices + m] = r[m];
}

template <int kMatrices, bool kTransposed>
void check_ldmatrix() {
  std::vector<uint32_t> out(32 * kMatrices);
  gpu::launch(Stream{}, ldmatrix_kernel<kMatrices, kTransposed>, dim3(1), dim3(32), 32 * 16, out.data(), 16);
  for (int lane = 0; lane < 32; ++lane)
    for (int m = 0; m < kMatrices; ++m)
      for (int half = 0; half < 2; ++half) {
        const int i = lane / 4, j = 2 * (lane % 4) + half;
        const int row = kTransposed ? j : i, column = kTransposed ? i : j;
        REQUIRE(int(out[lane * kMatrices + m] >> (16 * half) & 0xffff) == 100 * m + 10 * row + column);
      }
}

// Fragments by the ISA's formulas: group = lane / 4, in_group = lane % 4.
//   a_i  row     group for i = 0, 1, 4, 5, otherwise group + 8
//        column  in_group * 2 + (i & 1), and + 8 for i >= 4
//   b_i  row     in_group * 2 + (i & 1), and + 8 for i >= 2
//        column  group
//   c_i  row     group for i = 0, 1, otherwise group + 8
//        column  in_group * 2 + (i & 1)
template <class T>
__global__ void mma_kernel(const float* a, const float* b, const float* c, float* d) {
  const int group = int(threadIdx.x) / 4, in_group = int(threadIdx.x) % 4;
  float a_elements[8], b_elements[4], accumulators[4];
  for (int i = 0; i < 8; ++i) {
    const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
    a_elements[i] = a[row * 16 + in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0)];
  }
  for (int i = 0; i < 4; ++i) b_elements[i] = b[(in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0)) * 8 + group];
  const auto place = [&](int i) { return (i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1); };
  for (int i = 0; i < 4; ++i) accumulators[i] = c[place(i)];
  uint32_t a_registers[4], b_registers[2];
  for (int i = 0; i < 4; ++i) a_registers[i] = gpu::pack<T>(a_elements[2 * i], a_elements[2 * i + 1]);
  for (int i = 0; i < 2; ++i) b_registers[i] = gpu::pack<T>(b_elements[2 * i], b_elements[2 * i + 1]);
  gpu::mma_16816<T>(accumulators, a_registers, b_registers[0], b_registers[1]);
  for (int i = 0; i < 4; ++i) d[place(i)] = accumulators[i];
}

template <class T>
void check_mma() {
  std::vector<float> a(16 * 16), b(16 * 8), c(16 * 8), d(16 * 8);
  const auto fill = [](std::vector<float>& x, int step) {  // small integers: every order of the sum is exact
    for (size_t i = 0; i < x.size(); ++i) x[i] = float(int(i * step + i / 7) % 31 - 15);
  };
  fill(a, 5), fill(b, 11), fill(c, 17);
  gpu::launch(Stream{}, mma_kernel<T>, dim3(1), dim3(32), 0, a.data(), b.data(), c.data(), d.data());
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 8; ++n) {
      float expected = c[m * 8 + n];
      for (int k = 0; k < 16; ++k) expected += a[m * 16 + k] * b[k * 8 + n];
      REQUIRE(d[m * 8 + n] == expected);
    }
}

// Copies of kBytes each; every third one is not valid. The second group is waited for last.
template <int kBytes>
__global__ void cp_async_kernel(const unsigned char* x, unsigned char* out) {
  LACUNA_SHARED(uint4, memory, [64]);
  auto* bytes = reinterpret_cast<unsigned char*>(memory);
  const int i = int(threadIdx.x);
  gpu::cp_async<kBytes>(bytes + i * kBytes, x + i * kBytes, i % 3 != 0);
  gpu::cp_async_commit();
  gpu::cp_async<kBytes>(bytes + (i + 32) * kBytes, x + (i + 32) * kBytes, true);
  gpu::cp_async_commit();
  gpu::cp_async_wait<1>();
  for (int j = 0; j < kBytes; ++j) out[i * kBytes + j] = bytes[i * kBytes + j];
  gpu::cp_async_wait<0>();
  for (int j = 0; j < kBytes; ++j) out[(i + 32) * kBytes + j] = bytes[(i + 32) * kBytes + j];
}

template <int kBytes>
void check_cp_async() {
  alignas(16) unsigned char x[64 * kBytes], out[64 * kBytes];
  for (int i = 0; i < 64 * kBytes; ++i) x[i] = static_cast<unsigned char>(i * 7 + 1);
  gpu::launch(Stream{}, cp_async_kernel<kBytes>, dim3(1), dim3(32), 0, x, out);
  for (int i = 0; i < 64 * kBytes; ++i) {
    const int copy = i / kBytes;
    REQUIRE(int(out[i]) == (copy < 32 && copy % 3 == 0 ? 0 : int(x[i])));
  }
}

__global__ void early_read_kernel(const float* x, float* out) {
  LACUNA_SHARED(float4, memory, [1]);
  gpu::cp_async16(memory, x, true);
  gpu::cp_async_commit();
  out[0] = memory[0].x;
  gpu::cp_async_wait<0>();
  out[1] = memory[0].x;
}

__global__ void pack_kernel(float* out) {
  const float2 b = gpu::unpack<__nv_bfloat16>(gpu::pack<__nv_bfloat16>(1.00390625f, -3.0f));
  const float2 h = gpu::unpack<__half>(gpu::pack<__half>(1.00048828125f, 65504.0f));
  out[0] = b.x, out[1] = b.y, out[2] = h.x, out[3] = h.y;
  out[4] = gpu::exp2_approx(3.0f), out[5] = gpu::exp2_approx(-INFINITY);
}

}  // namespace

TEST_CASE("gpu.h: ldmatrix gives each lane its elements") {
  check_ldmatrix<4, false>();
  check_ldmatrix<4, true>();
  check_ldmatrix<2, false>();
  check_ldmatrix<2, true>();
}

TEST_CASE("gpu.h: mma_16816 multiplies fragments of bf16 and f16") {
  check_mma<__nv_bfloat16>();
  check_mma<__half>();
}

TEST_CASE("gpu.h: cp_async copies valid elements and clears the others") {
  check_cp_async<4>();
  check_cp_async<8>();
  check_cp_async<16>();
}

TEST_CASE("gpu.h: pack rounds to nearest even, the first number in the low half") {
  float out[6];
  gpu::launch(Stream{}, pack_kernel, dim3(1), dim3(1), 0, out);
  CHECK(out[0] == 1.0f);  // halfway between 1 and 1 + 2^-7
  CHECK(out[1] == -3.0f);
  CHECK(out[2] == 1.0f);
  CHECK(out[3] == 65504.0f);
  CHECK(std::abs(out[4] - 8.0f) <= 2 * 0x1p-20f);
  CHECK(out[5] == 0.0f);
}

#ifndef __CUDACC__
TEST_CASE("emulator: exp2_approx is wrong by up to 2 ulp") {
  double furthest = 0.0;
  for (float x = -3.0f; x < 0.0f; x += 0.01f) {
    const double exact = std::exp2(static_cast<double>(x)), ulp = std::ldexp(1.0, std::ilogb(exact) - 23);
    furthest = std::max(furthest, std::abs(gpu::exp2_approx(x) - exact) / ulp);
  }
  CHECK(furthest > 1.5);
  CHECK(furthest <= 2.51);
  CHECK(gpu::exp2_approx(0.0f) == 1.0f);
  CHECK(gpu::exp2_approx(-130.0f) == 0.0f);
  CHECK(gpu::exp2_approx(200.0f) == INFINITY);
}

TEST_CASE("emulator: what is being copied is NaN until it was waited for") {
  alignas(16) const float x[4] = {1, 2, 3, 4};
  float out[2];
  gpu::launch(Stream{}, early_read_kernel, dim3(1), dim3(1), 0, x, out);
  CHECK(std::isnan(out[0]));
  CHECK(out[1] == 1.0f);
}

TEST_CASE("emulator: bank conflicts of ldmatrix are counted") {
  const auto conflicts = [](int pitch) {
    std::vector<uint32_t> out(32 * 4);
    const emulation::Counters before = emulation::counters();
    gpu::launch(Stream{}, ldmatrix_kernel<4, false>, dim3(1), dim3(32), size_t(32) * pitch, out.data(), pitch);
    CHECK(emulation::counters().ldmatrix_phases - before.ldmatrix_phases == 4);
    return emulation::counters().bank_conflicts - before.bank_conflicts;
  };
  CHECK(conflicts(16) == 0);
  CHECK(conflicts(32) == 4);    // two rows in the same banks
  CHECK(conflicts(128) == 28);  // all eight
  CHECK(conflicts(144) == 0);
}
#endif

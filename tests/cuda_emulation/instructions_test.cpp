// Copies, matrix instructions, 2^x and named barriers against the PTX ISA. Its layouts are in the sections "Warp-level
// matrix load instruction: ldmatrix" and "Matrix fragments for mma.m16n8k16 with floating point type".

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "core/cuda/gpu.h"
#include "tests/cuda_emulation/gpu_memory.h"

using namespace lacuna;
using test::DeviceArray;
using test::gpu_stream;

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
  DeviceArray<uint32_t> device_out(32 * kMatrices);
  gpu::launch(gpu_stream(), ldmatrix_kernel<kMatrices, kTransposed>, dim3(1), dim3(32), 32 * 16, device_out.data(), 16);
  const std::vector<uint32_t> out = device_out.to_vector();
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
  std::vector<float> a(16 * 16), b(16 * 8), c(16 * 8);
  const auto fill = [](std::vector<float>& x, int step) {  // small integers: every order of the sum is exact
    for (size_t i = 0; i < x.size(); ++i) x[i] = float(int(i * step + i / 7) % 31 - 15);
  };
  fill(a, 5), fill(b, 11), fill(c, 17);
  DeviceArray<float> device_a(a), device_b(b), device_c(c), device_d(16 * 8);
  gpu::launch(gpu_stream(), mma_kernel<T>, dim3(1), dim3(32), 0, device_a.data(), device_b.data(), device_c.data(),
              device_d.data());
  const std::vector<float> d = device_d.to_vector();
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
  std::vector<unsigned char> x(64 * kBytes);
  for (int i = 0; i < 64 * kBytes; ++i) x[i] = static_cast<unsigned char>(i * 7 + 1);
  DeviceArray<unsigned char> device_x(x), device_out(64 * kBytes);
  gpu::launch(gpu_stream(), cp_async_kernel<kBytes>, dim3(1), dim3(32), 0, device_x.data(), device_out.data());
  const std::vector<unsigned char> out = device_out.to_vector();
  for (int i = 0; i < 64 * kBytes; ++i) {
    const int copy = i / kBytes;
    REQUIRE(int(out[i]) == (copy < 32 && copy % 3 == 0 ? 0 : int(x[i])));
  }
}

__global__ void pack_kernel(float* out) {
  const float2 b = gpu::unpack<__nv_bfloat16>(gpu::pack<__nv_bfloat16>(1.00390625f, -3.0f));
  const float2 h = gpu::unpack<__half>(gpu::pack<__half>(1.00048828125f, 65504.0f));
  out[0] = b.x, out[1] = b.y, out[2] = h.x, out[3] = h.y;
}

__global__ void exp2_kernel(const float* x, float* y) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  y[i] = gpu::exp2_approx(x[i]);
}

// The first warp prepares what the second uses, in two buffers: a pair of named barriers a buffer.
__global__ void named_barrier_kernel(int* out, int rounds) {
  LACUNA_SHARED(int, buffer, [2][32]);
  const int lane = int(threadIdx.x % 32);
  const bool producer = threadIdx.x < 32;
  for (int round = 0; round < rounds; ++round) {
    const int slot = round % 2;
    if (producer) {
      if (round >= 2) gpu::bar_sync(3 + slot, 64);
      buffer[slot][lane] = 100 * round + lane;
      gpu::bar_arrive(1 + slot, 64);
    } else {
      gpu::bar_sync(1 + slot, 64);
      out[round * 32 + lane] = buffer[slot][31 - lane];
      if (round + 2 < rounds) gpu::bar_arrive(3 + slot, 64);
    }
  }
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
  DeviceArray<float> device_out(4);
  gpu::launch(gpu_stream(), pack_kernel, dim3(1), dim3(1), 0, device_out.data());
  const std::vector<float> out = device_out.to_vector();
  CHECK(out[0] == 1.0f);  // halfway between 1 and 1 + 2^-7
  CHECK(out[1] == -3.0f);
  CHECK(out[2] == 1.0f);
  CHECK(out[3] == 65504.0f);
}

TEST_CASE("gpu.h: exp2_approx is 2^x, wrong by up to 2 ulp, without results below the normal numbers") {
  std::vector<float> x{0.0f, -130.0f, -INFINITY, 200.0f};
  const size_t first = x.size();
  while (x.size() < 1024) x.push_back(-3.0f + 0.01f * static_cast<float>(x.size() - first));
  DeviceArray<float> device_x(x), device_y(x.size());
  gpu::launch(gpu_stream(), exp2_kernel, dim3(8), dim3(128), 0, device_x.data(), device_y.data());
  const std::vector<float> y = device_y.to_vector();
  CHECK(y[0] == 1.0f);
  CHECK(y[1] == 0.0f);
  CHECK(y[2] == 0.0f);
  CHECK(y[3] == INFINITY);
  double furthest = 0.0;  // in ulp
  for (size_t i = first; i < x.size(); ++i) {
    const double exact = std::exp2(static_cast<double>(x[i])), ulp = std::ldexp(1.0, std::ilogb(exact) - 23);
    furthest = std::max(furthest, std::abs(y[i] - exact) / ulp);
  }
  CHECK(furthest <= 2.51);
#if !LACUNA_ON_GPU
  CHECK(furthest > 1.5);  // the emulator does not flatter the kernels
#endif
}

TEST_CASE("gpu.h: named barriers tie a producer to a consumer") {
  constexpr int kRounds = 7;
  DeviceArray<int> device_out(kRounds * 32);
  gpu::launch(gpu_stream(), named_barrier_kernel, dim3(1), dim3(64), 0, device_out.data(), kRounds);
  const std::vector<int> out = device_out.to_vector();
  for (int i = 0; i < kRounds * 32; ++i) REQUIRE(out[i] == i / 32 * 100 + 31 - i % 32);
}

#if !LACUNA_ON_GPU
namespace {

__global__ void early_read_kernel(const float* x, float* out) {
  LACUNA_SHARED(float4, memory, [1]);
  gpu::cp_async16(memory, x, true);
  gpu::cp_async_commit();
  out[0] = memory[0].x;
  gpu::cp_async_wait<0>();
  out[1] = memory[0].x;
}

}  // namespace

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

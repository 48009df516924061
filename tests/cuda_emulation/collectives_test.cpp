// How threads of a block work together: barriers, shuffles, votes, reductions, atomics. For barriers with names see
// instructions_test.cpp.

#include <doctest/doctest.h>

#include <cstddef>
#include <cstring>
#include <numeric>
#include <vector>

#include "core/cuda/gpu.h"
#include "tests/support/expect_error.h"

using namespace lacuna;

namespace {

constexpr unsigned kAll = 0xffffffffu;

__global__ void index_kernel(uint32_t* out) {
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block << 16 | thread;
}

/// Parameters with padding, as g++ 12 cleared them in other places when a closure carried them.
struct PaddedParameters {
  struct {
    int64_t numbers[7];
    uint32_t bits[2];
  } rows[32];
  int16_t shorts[64][4];
  float scale;
  bool flag;
};

__global__ void count_ones_kernel(const __grid_constant__ PaddedParameters parameters, int* out) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(&parameters);
  for (size_t i = 0; i < offsetof(PaddedParameters, flag); ++i) *out += bytes[i] == 1;
}

// Each thread hands its number to the one `shift` further on.
__global__ void rotate_kernel(int* out, int shift) {
  LACUNA_SHARED(int, box, [96]);
  LACUNA_DYNAMIC_SHARED(int, second_box);
  const int i = int(threadIdx.x), n = int(blockDim.x);
  for (int round = 0; round < 3; ++round) {
    box[(i + shift) % n] = round * 1000 + i;
    __syncthreads();
    second_box[i] = box[i];
    __syncthreads();
    out[(int(blockIdx.x) * 3 + round) * n + i] = second_box[(i + 1) % n];
    __syncthreads();
  }
}

__global__ void shuffle_kernel(int* out) {
  const int lane = int(threadIdx.x);
  int* mine = out + lane * 8;
  mine[0] = __shfl_sync(kAll, lane, 5);
  mine[1] = __shfl_sync(kAll, lane, 35, 8);
  mine[2] = __shfl_xor_sync(kAll, lane, 3);
  mine[3] = __shfl_xor_sync(kAll, lane, 16, 8);
  mine[4] = __shfl_up_sync(kAll, lane, 3u);
  mine[5] = __shfl_up_sync(kAll, lane, 3u, 16);
  mine[6] = __shfl_down_sync(kAll, lane, 3u);
  mine[7] = __shfl_down_sync(kAll, lane, 3u, 16);
}

__global__ void vote_kernel(uint32_t* out) {
  const unsigned lane = threadIdx.x % 32;
  uint32_t* mine = out + threadIdx.x * 8;
  // The halves of a warp work under masks of their own, in any order.
  const uint32_t mask = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  mine[0] = __ballot_sync(mask, lane % 3 == 0);
  mine[1] = uint32_t(__any_sync(mask, lane == 20));
  mine[2] = uint32_t(__all_sync(mask, lane >= 16));
  mine[3] = __reduce_add_sync(kAll, lane);
  mine[4] = uint32_t(__reduce_max_sync(mask, int(lane) - 40));
  mine[5] = uint32_t(__syncthreads_count(threadIdx.x % 5 == 0));
  mine[6] = uint32_t(__syncthreads_or(threadIdx.x == 40));
  mine[7] = uint32_t(__syncthreads_and(threadIdx.x != 40));
}

__global__ void early_exit_kernel(float* out, int live) {
  if (int(threadIdx.x) >= live) return;  // not by whole warps: the others wait neither at collectives nor at barriers
  float sum = float(threadIdx.x);
  sum = __shfl_sync(kAll, sum, 0) + 1;
  __syncthreads();
  out[threadIdx.x] = sum;
}

__global__ void atomic_kernel(int* integers, float* sum, unsigned* ring) {
  atomicAdd(&integers[0], 1);
  atomicMax(&integers[1], int(blockIdx.x * blockDim.x + threadIdx.x));
  atomicMin(&integers[2], -int(threadIdx.x));
  atomicAdd(sum, 0.5f);
  atomicInc(ring, 9);
  atomicCAS(&integers[3], 7, 8);
}

// The last block to finish adds up what all have written.
__global__ void last_block_kernel(const int* x, int* partial, unsigned* finished, int* total) {
  if (threadIdx.x == 0) partial[blockIdx.x] = x[blockIdx.x];
  __threadfence();
  LACUNA_SHARED(int, is_last);
  if (threadIdx.x == 0) is_last = atomicAdd(finished, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  if (threadIdx.x == 0) {
    int sum = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];
    *total = sum;
  }
}

__global__ void uninitialised_kernel(float* out) {
  LACUNA_SHARED(float, fixed, [32]);
  LACUNA_DYNAMIC_SHARED(float, dynamic);
  out[threadIdx.x] = fixed[threadIdx.x];
  out[32 + threadIdx.x] = dynamic[threadIdx.x];
}

}  // namespace

TEST_CASE("emulator: blocks and threads know their indices") {
  const dim3 grid(3, 2, 2), block(4, 3, 5);
  std::vector<uint32_t> out(12 * 60);
  gpu::launch(Stream{}, index_kernel, grid, block, 0, out.data());
  for (uint32_t b = 0; b < 12; ++b)
    for (uint32_t t = 0; t < 60; ++t) REQUIRE(out[b * 60 + t] == (b << 16 | t));
}

TEST_CASE("emulator: parameters arrive whole, whatever their padding") {
  PaddedParameters parameters;
  std::memset(&parameters, 1, sizeof(parameters));
  int ones = 0;
  gpu::launch(Stream{}, count_ones_kernel, dim3(1), dim3(1), 0, parameters, &ones);
  CHECK(ones == offsetof(PaddedParameters, flag));
}

TEST_CASE("emulator: what was written before a barrier is read after it") {
  constexpr int kThreads = 96, kBlocks = 5, kShift = 37;
  std::vector<int> out(kBlocks * 3 * kThreads);
  gpu::launch(Stream{}, rotate_kernel, dim3(kBlocks), dim3(kThreads), kThreads * sizeof(int), out.data(), kShift);
  for (int row = 0; row < kBlocks * 3; ++row)
    for (int i = 0; i < kThreads; ++i)
      REQUIRE(out[row * kThreads + i] == row % 3 * 1000 + (i + 1 + kThreads - kShift) % kThreads);
}

TEST_CASE("emulator: shuffles take the lane that CUDA's guide names") {
  std::vector<int> out(32 * 8);
  gpu::launch(Stream{}, shuffle_kernel, dim3(1), dim3(32), 0, out.data());
  for (int lane = 0; lane < 32; ++lane) {
    const std::vector<int> got(out.begin() + lane * 8, out.begin() + lane * 8 + 8);
    const int in16 = lane % 16;
    const std::vector<int> expected{5,
                                    lane / 8 * 8 + 3,
                                    lane ^ 3,
                                    (lane ^ 16) < lane ? lane ^ 16 : lane,
                                    lane >= 3 ? lane - 3 : lane,
                                    in16 >= 3 ? lane - 3 : lane,
                                    lane < 29 ? lane + 3 : lane,
                                    in16 < 13 ? lane + 3 : lane};
    REQUIRE(got == expected);
  }
}

TEST_CASE("emulator: votes and reductions see the lanes of their mask") {
  std::vector<uint32_t> out(64 * 8);
  gpu::launch(Stream{}, vote_kernel, dim3(1), dim3(64), 0, out.data());
  for (uint32_t thread = 0; thread < 64; ++thread) {
    const uint32_t* got = &out[thread * 8];
    const bool low = thread % 32 < 16;
    REQUIRE(got[0] == (0x49249249u & (low ? 0xffffu : 0xffff0000u)));
    REQUIRE(got[1] == !low);
    REQUIRE(got[2] == !low);
    REQUIRE(got[3] == 31 * 32 / 2);
    REQUIRE(int(got[4]) == (low ? 15 : 31) - 40);
    REQUIRE(got[5] == 13);
    REQUIRE(got[6] == 1);
    REQUIRE(got[7] == 0);
  }
}

TEST_CASE("emulator: threads that have left are not waited for") {
  for (const int live : {1, 31, 33, 64}) {
    std::vector<float> out(64, -1.0f);
    gpu::launch(Stream{}, early_exit_kernel, dim3(1), dim3(64), 0, out.data(), live);
    for (int i = 0; i < 64; ++i) REQUIRE(out[i] == (i >= live ? -1.0f : float(i / 32 * 32) + 1));
  }
}

TEST_CASE("emulator: atomics of all threads of all blocks count") {
  std::vector<int> integers{0, -1, 5, 7};
  float sum = 0;
  unsigned ring = 0;
  gpu::launch(Stream{}, atomic_kernel, dim3(7), dim3(33), 0, integers.data(), &sum, &ring);
  CHECK(integers == std::vector<int>{7 * 33, 7 * 33 - 1, -32, 8});
  CHECK(sum == 7 * 33 * 0.5f);
  CHECK(ring == 7 * 33 % 10);
}

TEST_CASE("emulator: the last block sees what the others wrote before their fences") {
  std::vector<int> x(20), partial(20);
  std::iota(x.begin(), x.end(), 1);
  unsigned finished = 0;
  int total = 0;
  gpu::launch(Stream{}, last_block_kernel, dim3(20), dim3(64), 0, x.data(), partial.data(), &finished, &total);
  CHECK(total == 210);
}

#ifndef __CUDACC__
TEST_CASE("emulator: shared memory starts as NaN") {
  std::vector<float> out(64);
  gpu::launch(Stream{}, uninitialised_kernel, dim3(1), dim3(32), 32 * sizeof(float), out.data());
  for (const float x : out) REQUIRE(std::isnan(x));
}

TEST_CASE("emulator: an impossible launch is refused, with the place") {
  const auto launch = [](dim3 grid, dim3 block, size_t shared_bytes) {
    gpu::launch(Stream{}, uninitialised_kernel, grid, block, shared_bytes, nullptr);
  };
  expect_error("collectives_test.cpp", [&] { launch(dim3(0), dim3(32), 0); });
  expect_error("got (1,65536,1)", [&] { launch(dim3(1, 65536), dim3(32), 0); });
  expect_error("at most 1024 threads, got 1056", [&] { launch(dim3(1), dim3(33, 32), 0); });
  expect_error("got 232449", [&] { launch(dim3(1), dim3(32), 232449); });
}
#endif

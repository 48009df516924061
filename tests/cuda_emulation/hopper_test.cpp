// mbarriers, the copy unit and wgmma against the layouts of the PTX ISA, sections "Tensor swizzling modes", "Matrix
// descriptor format" and "Register fragments for wgmma.mma_async.m64nNk16".

#include "core/cuda/hopper.h"

#include <doctest/doctest.h>

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "tests/cuda_emulation/gpu_memory.h"
#include "tests/support/expect_error.h"

#if !LACUNA_ON_GPU
#include <sys/wait.h>
#include <unistd.h>

#include "tests/cuda_emulation/sanitizers.h"
#endif

using namespace lacuna;
using gpu::Swizzle;
using test::DeviceArray;
using test::gpu_stream;

namespace {

/// Whether kernels for sm_90a can run; if not, the test says why.
bool has_sm90a() {
#if LACUNA_ON_GPU
  const gpu::DeviceProperties& p = gpu::properties(kCuda);
  if (p.major != 9 || p.minor != 0) {
    MESSAGE("skipped: ", p.name, " is of compute capability ", p.major, ".", p.minor, ", and this needs 9.0");
    return false;
  }
#if !LACUNA_SM90A
  MESSAGE("skipped: this build has no code for sm_90a");
  return false;
#endif
#endif
  return true;
}

constexpr Swizzle kSwizzles[] = {Swizzle::none, Swizzle::bytes32, Swizzle::bytes64, Swizzle::bytes128};

template <class T>
std::vector<T> small_integers(size_t count, int step) {  // every order of a sum of products is exact
  std::vector<T> x(count);
  for (size_t i = 0; i < count; ++i) x[i] = T(float((int(i) * step + int(i) / 7) % 31 - 15));
  return x;
}

uint16_t bits_of(const auto& x) {
  uint16_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

// --- mbarriers

// The first warp fills a ring of two slots that the second and third read.
__global__ void ring_kernel(int* out, int rounds) {
#if LACUNA_SM90A_CODE
  LACUNA_DYNAMIC_SHARED(uint64_t, barriers);
  uint64_t *const full = barriers, *const empty = barriers + 2;
  int* const slots = reinterpret_cast<int*>(barriers + 4);  // [2][32]
  const int lane = int(threadIdx.x % 32);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      gpu::mbarrier_init(&full[i], 32);
      gpu::mbarrier_init(&empty[i], 64);
    }
  }
  __syncthreads();
  for (int round = 0; round < rounds; ++round) {
    const int slot = round % 2, parity = round / 2 % 2;
    if (threadIdx.x < 32) {
      gpu::mbarrier_wait(&empty[slot], parity ^ 1);
      slots[slot * 32 + lane] = 100 * round + lane;
      gpu::mbarrier_arrive(&full[slot]);
    } else {
      gpu::mbarrier_wait(&full[slot], parity);
      out[round * 64 + int(threadIdx.x) - 32] = slots[slot * 32 + 31 - lane];
      gpu::mbarrier_arrive(&empty[slot]);
    }
  }
#endif
}

// --- The copy unit

struct BoxArguments {
  gpu::TensorMap map;
  int at[gpu::kTensorRank];
  int bytes;
};

__global__ void box_kernel(const __grid_constant__ BoxArguments box, unsigned char* out) {
#if LACUNA_SM90A_CODE
  LACUNA_DYNAMIC_SHARED(unsigned char, memory);
  auto* const arrived = reinterpret_cast<uint64_t*>(memory + box.bytes);
  if (threadIdx.x == 0) {
    gpu::mbarrier_init(arrived, 1);
    gpu::fence_proxy_async();
    gpu::mbarrier_arrive_expecting(arrived, box.bytes);
    gpu::copy_box(memory, box.map, arrived, box.at);
  }
  __syncthreads();
  gpu::mbarrier_wait(arrived, 0);
  for (int i = int(threadIdx.x); i < box.bytes; i += int(blockDim.x)) out[i] = memory[i];
#endif
}

template <class T, int kRank>
void check_box(const int64_t (&sizes)[kRank], const int64_t (&strides)[kRank], const int (&box)[kRank],
               const int (&at)[kRank], Swizzle swizzle) {
  int64_t count = 1;
  for (int i = 0; i < kRank; ++i) count += (sizes[i] - 1) * strides[i];
  const std::vector<T> x = small_integers<T>(size_t(count), 5);
  DeviceArray<T> device_x(x);
  BoxArguments arguments{gpu::tensor_map(device_x.data(), sizes, strides, box, swizzle), {}, 2};
  for (int i = 0; i < kRank; ++i) {
    arguments.at[i] = at[i];
    arguments.bytes *= box[i];
  }
  DeviceArray<unsigned char> device_out{size_t(arguments.bytes)};
  gpu::launch(gpu_stream(), box_kernel, dim3(1), dim3(64), size_t(arguments.bytes) + 8, arguments, device_out.data());
  const std::vector<unsigned char> out = device_out.to_vector();
  for (size_t i = 0; i < out.size() / 2; ++i) {
    size_t rest = i;
    int64_t from = 0;
    bool inside = true;
    for (int d = 0; d < kRank; ++d) {
      const int64_t index = at[d] + int64_t(rest % size_t(box[d]));
      rest /= size_t(box[d]);
      inside = inside && 0 <= index && index < sizes[d];
      from += index * strides[d];
    }
    // Of each line of 128 bytes the pieces of 16 change places: p goes to p xor line, under the mask of the swizzle.
    const size_t line = 2 * i / 128, piece = 2 * i / 16 % 8, mask = (size_t{1} << int(swizzle)) - 1;
    const size_t place = line * 128 + (piece ^ (line & mask)) * 16 + 2 * i % 16;
    uint16_t bits;
    std::memcpy(&bits, &out[place], sizeof(bits));
    REQUIRE(bits == (inside ? bits_of(x[size_t(from)]) : 0));
  }
}

// --- wgmma

struct Matrices {
  int bytes, b_offset;  // of a and b together; of b
  int a_leading, a_stride, a_step, b_leading, b_stride, b_step;
  int steps;
  Swizzle swizzle;
};

template <class T, int kN, bool kColumns, bool kRegisters>
__global__ void __launch_bounds__(128)
    wgmma_kernel(Matrices m, const unsigned char* image, const T* a, const float* c, float* out) {
#if LACUNA_SM90A_CODE
  LACUNA_DYNAMIC_SHARED(unsigned char, memory);
  for (int i = int(threadIdx.x); i < m.bytes; i += 128) memory[i] = image[i];
  gpu::fence_proxy_async();
  __syncthreads();
  const int warp = int(threadIdx.x) / 32, g = int(threadIdx.x) % 32 / 4, t = int(threadIdx.x) % 4;
  const auto place = [&](int i) { return (16 * warp + g + 8 * (i / 2 % 2)) * kN + i / 4 * 8 + 2 * t + i % 2; };
  float d[kN / 2];
  uint32_t operand[1][4];
  for (int i = 0; i < kN / 2; ++i) d[i] = c ? c[place(i)] : 0.0f;
  for (int step = 0; step < m.steps; ++step) {
    const unsigned char* const b = memory + m.b_offset + step * m.b_step;
    const uint64_t b_matrix = gpu::matrix_descriptor(b, m.b_leading, m.b_stride, m.swizzle);
    const bool add = c || step > 0;
    if constexpr (kRegisters) {
      for (int i = 0; i < 4; ++i) {
        const T* const row = a + (16 * warp + g + 8 * (i % 2)) * m.steps * 16 + step * 16 + 2 * t + 8 * (i / 2);
        operand[0][i] = gpu::pack<T>(float(row[0]), float(row[1]));
      }
      gpu::wgmma_fence(d, operand);
      gpu::wgmma<T, kN, kColumns>(d, operand[0], b_matrix, add);
    } else {
      gpu::wgmma_fence(d);
      const uint64_t a_matrix = gpu::matrix_descriptor(memory + step * m.a_step, m.a_leading, m.a_stride, m.swizzle);
      gpu::wgmma<T, kN, kColumns>(d, a_matrix, b_matrix, add);
    }
    gpu::wgmma_commit();
    gpu::wgmma_wait<0>(d);
  }
  for (int i = 0; i < kN / 2; ++i) out[place(i)] = d[i];
#endif
}

/// A matrix [rows][k] in shared memory: in lines of 16 << swizzle bytes along k, or with `columns` along rows, eight of
/// which are an atom.
struct Layout {
  bool columns;
  Swizzle swizzle;
  int line, leading, stride, step;  // bytes; step: from one 16 k to the next

  Layout(int k, bool in_columns, Swizzle swizzle) : columns(in_columns), swizzle(swizzle), line(16 << int(swizzle)) {
    const int atom = 8 * line;
    if (swizzle == Swizzle::none)
      leading = atom, stride = k / 8 * atom, step = 2 * atom;
    else if (columns)
      leading = k / 8 * atom, stride = atom, step = 2 * atom;
    else
      leading = 0, stride = atom, step = 32;
  }

  int place(int row, int k) const {
    const int across = columns ? row : k, along = columns ? k : row;
    if (swizzle == Swizzle::none) return row / 8 * stride + k / 8 * leading + along % 8 * 16 + across % 8 * 2;
    const int y = along % 8 * line + across * 2 % line;  // in the atom, before 16-byte pieces change places
    const int swapped = y / 16 % 8 ^ (y / 128 & ((1 << int(swizzle)) - 1));
    return along / 8 * stride + across * 2 / line * leading + y / 128 * 128 + swapped * 16 + y % 16;
  }
};

template <class T, int kN, bool kColumns, bool kRegisters>
void check_wgmma(Swizzle swizzle, bool add) {
  const int depth = swizzle == Swizzle::none ? 32 : 8 << int(swizzle);
  const std::vector<T> a = small_integers<T>(size_t(64 * depth), 5), b = small_integers<T>(size_t(depth * kN), 11);
  const std::vector<float> c = small_integers<float>(64 * kN, 17);
  const Layout a_layout(depth, false, swizzle), b_layout(depth, kColumns, swizzle);
  const int a_bytes = 64 * depth * 2, bytes = a_bytes + kN * depth * 2;
  std::vector<unsigned char> image(size_t(bytes), 0);
  for (int k = 0; k < depth; ++k) {
    for (int m = 0; m < 64; ++m) std::memcpy(&image[size_t(a_layout.place(m, k))], &a[size_t(m * depth + k)], 2);
    for (int n = 0; n < kN; ++n)
      std::memcpy(&image[size_t(a_bytes + b_layout.place(n, k))], &b[size_t(n * depth + k)], 2);
  }
  DeviceArray<unsigned char> device_image(image);
  DeviceArray<T> device_a(a);
  DeviceArray<float> device_c(c), device_d(64 * kN);
  const Matrices matrices{bytes,         a_bytes,          a_layout.leading, a_layout.stride,
                          a_layout.step, b_layout.leading, b_layout.stride,  b_layout.step,
                          depth / 16,    swizzle};
  gpu::launch(gpu_stream(), wgmma_kernel<T, kN, kColumns, kRegisters>, dim3(1), dim3(128), size_t(bytes), matrices,
              device_image.data(), device_a.data(), add ? device_c.data() : nullptr, device_d.data());
  const std::vector<float> d = device_d.to_vector();
  for (int m = 0; m < 64; ++m)
    for (int n = 0; n < kN; ++n) {
      float expected = add ? c[size_t(m * kN + n)] : 0.0f;
      for (int k = 0; k < depth; ++k) expected += float(a[size_t(m * depth + k)]) * float(b[size_t(n * depth + k)]);
      REQUIRE(d[size_t(m * kN + n)] == expected);
    }
}

}  // namespace

TEST_CASE("hopper.h: mbarriers tie a producer to consumers") {
  if (!has_sm90a()) return;
  constexpr int kRounds = 7;
  DeviceArray<int> device_out(kRounds * 64);
  gpu::launch(gpu_stream(), ring_kernel, dim3(1), dim3(96), 4 * 8 + 64 * sizeof(int), device_out.data(), kRounds);
  const std::vector<int> out = device_out.to_vector();
  for (int round = 0; round < kRounds; ++round)
    for (int i = 0; i < 64; ++i) REQUIRE(out[size_t(round * 64 + i)] == 100 * round + 31 - i % 32);
}

TEST_CASE("hopper.h: boxes of tensors arrive swizzled, with zeros outside the tensor") {
  if (!has_sm90a()) return;
  using T = __nv_bfloat16;
  for (const Swizzle swizzle : kSwizzles) {
    const int width = swizzle == Swizzle::none ? 24 : 8 << int(swizzle);
    CAPTURE(width);
    check_box<T>({64, 40}, {1, 72}, {width, 16}, {0, 8}, swizzle);
    check_box<T>({50, 20}, {1, 64}, {width, 32}, {40, -5}, swizzle);  // over three edges
    check_box<__half>({20, 30}, {1, 32}, {width, 8}, {-4, 25}, swizzle);
    check_box<T>({32, 4, 5, 2}, {1, 96, 480, 2400}, {width, 2, 4, 1}, {0, 2, 2, 1}, swizzle);  // rows of a summary
    check_box<T>({16, 3, 4, 6, 2}, {1, 16, 48, 240, 1600}, {width, 2, 2, 4, 1}, {0, 2, 3, 4, 1}, swizzle);
  }
  check_box<T>({8}, {1}, {16}, {-3}, Swizzle::bytes32);
}

TEST_CASE("hopper.h: a map that the driver would refuse is refused, with the reason") {
  alignas(16) static const __half x[64] = {};
  const auto map = [&](const __half* data, const int64_t(&sizes)[2], const int64_t(&strides)[2], const int(&box)[2]) {
    gpu::tensor_map(data, sizes, strides, box, Swizzle::bytes128);
  };
  expect_error("the address must be a multiple of 16 bytes", [&] { map(x + 1, {8, 8}, {1, 8}, {8, 8}); });
  expect_error("stride 0 must be 1, got 2", [&] { map(x, {8, 8}, {2, 8}, {8, 8}); });
  expect_error("stride 1 must be a positive multiple of 16 bytes below 2^40, got 8", [&] {
    map(x, {8, 8}, {1, 4}, {8, 8});
  });
  expect_error("size 1 must be 1 to 2^32, got 0", [&] { map(x, {8, 0}, {1, 8}, {8, 8}); });
  expect_error("box 1 must be 1 to 256, got 257", [&] { map(x, {8, 8}, {1, 8}, {8, 257}); });
  expect_error("multiple of 16 bytes, got 24", [&] { map(x, {8, 8}, {1, 8}, {12, 8}); });
  expect_error("at most the swizzle's 128 bytes, got 144", [&] { map(x, {8, 8}, {1, 8}, {72, 8}); });
}

TEST_CASE_TEMPLATE("hopper.h: wgmma multiplies matrices in every layout", T, __nv_bfloat16, __half) {
  if (!has_sm90a()) return;
  for (const Swizzle swizzle : kSwizzles)
    for (const bool add : {false, true}) {
      CAPTURE(int(swizzle));
      check_wgmma<T, 128, false, false>(swizzle, add);
      check_wgmma<T, 64, true, true>(swizzle, add);
#if !LACUNA_ON_GPU  // for which hopper.h has the two that kernels need
      check_wgmma<T, 128, true, false>(swizzle, add);
      check_wgmma<T, 24, false, true>(swizzle, add);
#endif
    }
}

#if !LACUNA_ON_GPU
namespace {

/// Runs `body` in a process of its own, which must stop with a report that contains `text`.
template <class Body>
void expect_report(const std::string& text, const Body& body) {
  if (emulation::under_tsan()) return;  // does not follow a fork
  std::array<int, 2> ends;
  REQUIRE(pipe(ends.data()) == 0);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    dup2(ends[1], 1), dup2(ends[1], 2);
    body();
    _exit(0);
  }
  close(ends[1]);
  std::string report;
  std::array<char, 1024> part;
  for (ssize_t n; (n = read(ends[0], part.data(), part.size())) > 0;) report.append(part.data(), size_t(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  CAPTURE(report);
  CHECK(status != 0);
  CHECK(report.find(text) != std::string::npos);
}

enum class Mistake { none, no_fence, no_commit, no_wait, no_proxy_fence, changed_operand, touched_accumulator };

/// One product of zeros, done wrongly.
__global__ void mistaken_product(Mistake mistake) {
  LACUNA_DYNAMIC_SHARED(unsigned char, memory);
  const int i = int(threadIdx.x);
  for (int x = i; x < 4096 + 16; x += 128) memory[x] = 0;
  if (mistake != Mistake::no_proxy_fence) gpu::fence_proxy_async();
  __syncthreads();
  float d[32] = {};
  const uint64_t a = gpu::matrix_descriptor(memory, 128, 256, Swizzle::none);
  const uint64_t b = gpu::matrix_descriptor(memory + 2048, 128, 256, Swizzle::none);
  if (mistake != Mistake::no_fence) gpu::wgmma_fence(d);
  gpu::wgmma<__half, 64, false>(d, a, b, true);
  if (mistake != Mistake::no_commit) gpu::wgmma_commit();
  if (mistake == Mistake::changed_operand) memory[4095] = 1;
  if (mistake == Mistake::touched_accumulator) d[3] = 1;
  if (mistake != Mistake::no_wait) gpu::wgmma_wait<0>(d);
}

enum class Slip { none, no_init, init_unfenced, over_arrival, wrong_parity, not_waited };

__global__ void mistaken_copy(const __grid_constant__ gpu::TensorMap map, Slip slip) {
  LACUNA_DYNAMIC_SHARED(unsigned char, memory);
  auto* const arrived = reinterpret_cast<uint64_t*>(memory + 1024);
  if (slip != Slip::no_init) gpu::mbarrier_init(arrived, 1);
  if (slip != Slip::init_unfenced) gpu::fence_proxy_async();
  gpu::mbarrier_arrive_expecting(arrived, 1024);
  gpu::copy_box(memory, map, arrived, {0, 0, 0, 0, 0});
  if (slip == Slip::over_arrival) gpu::mbarrier_arrive(arrived);
  if (slip != Slip::not_waited) gpu::mbarrier_wait(arrived, 0);
  if (slip == Slip::wrong_parity) gpu::mbarrier_wait(arrived, 1);
}

}  // namespace

TEST_CASE("emulator: mistakes with wgmma are reported") {
  const auto run = [](Mistake mistake) {
    gpu::launch(Stream{}, mistaken_product, dim3(1), dim3(128), 4096 + 16, mistake);
  };
  run(Mistake::none);
  expect_report("whose registers no wgmma.fence names", [&] { run(Mistake::no_fence); });
  expect_report("leaves the products in the registers that it names under way", [&] { run(Mistake::no_commit); });
  expect_report("exits before its wgmma were waited for", [&] { run(Mistake::no_wait); });
  expect_report("without fence.proxy.async", [&] { run(Mistake::no_proxy_fence); });
  expect_report("wgmma reads what threads wrote", [&] { run(Mistake::changed_operand); });
  expect_report("registers of an accumulator were written", [&] { run(Mistake::touched_accumulator); });
}

TEST_CASE("emulator: mistakes with mbarriers and copies are reported") {
  static const std::vector<__half> x(8 * 64, __half(1.0f));
  const gpu::TensorMap map = gpu::tensor_map(x.data(), {64, 8}, {1, 64}, {64, 8}, Swizzle::bytes128);
  const auto run = [&](Slip slip) { gpu::launch(Stream{}, mistaken_copy, dim3(1), dim3(1), 1024 + 8, map, slip); };
  run(Slip::none);
  expect_report("an mbarrier that was not initialised", [&] { run(Slip::no_init); });
  expect_report("the copy unit does not see the mbarrier yet", [&] { run(Slip::init_unfenced); });
  expect_report("more arrivals than the 1", [&] { run(Slip::over_arrival); });
  expect_report("wait for an mbarrier", [&] { run(Slip::wrong_parity); });
  expect_report("the block ends before the copy", [&] { run(Slip::not_waited); });
}
#endif

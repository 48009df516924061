// The forward kernel of sm_90a against dense attention under the mask in f64.

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "core/cuda/runtime.h"
#include "ops/sparse_attention/cuda/launches.h"
#include "ops/sparse_attention/kernels.h"
#include "ops/sparse_attention/sparse_attention.h"
#include "tests/ops/sparse_attention/dense_masked.h"
#if !LACUNA_ON_GPU
#include "tests/cuda_emulation/execution.h"
#include "tests/cuda_emulation/runtime_emulated.h"
#endif
#include "tests/cuda_emulation/sanitizers.h"

using namespace lacuna;
using namespace lacuna::test;

namespace {

using emulation::under_tsan;

/// How many wgmma the kernels have issued. A GPU does not count them.
uint64_t count_wgmma() {
#if LACUNA_ON_GPU
  return 0;
#else
  return emulation::counters().wgmma;
#endif
}

/// Whether this build has the kernel and this GPU is one that it is for.
bool has_kernel() {
#if LACUNA_SM90A
  const gpu::DeviceProperties& p = gpu::properties(kCuda);
  return p.major == 9 && p.minor == 0;
#else
  return false;
#endif
}

template <class T>
struct Forward {
  std::vector<T> o;
  std::vector<float> lse;
  bool used_kernel = false;
};

template <class T>
Forward<T> forward(const Case& c) {
  const Inputs<T> in(c);
  const Shape shape_qkv{c.batch, c.n, c.n_heads * (2 * c.d_qk + c.d_v)}, shape_v{c.batch, c.n, c.n_heads * c.d_v};
  const auto [q, k, v] =
      split_qkv(to_device(from_vector(side_by_side(c, in.q, in.k, in.v), shape_qkv), kCuda), c.n_heads * c.d_qk);
  AttentionSaved saved{q, k, v, empty(shape_v, dtype_of<T>, kCuda),
                       empty({c.batch, c.n_heads, c.n}, DType::f32, kCuda)};
  AttentionProblem problem{c.batch, c.n, c.n_heads, c.d_qk, c.d_v, {}};
  for (int64_t h = 0; h < c.n_heads; ++h) problem.heads.push_back(parts_of(c.pattern.for_head(h)));
  const int64_t launches = gpu::hopper_launches;
  const uint64_t wgmma = count_wgmma();
  gpu::attention_forward(gpu::compute_stream(kCuda), problem, saved);
  Forward<T> result{to_vector<T>(saved.o), to_vector<float>(saved.lse)};
  result.used_kernel = gpu::hopper_launches > launches;
  if (!LACUNA_ON_GPU) CHECK(result.used_kernel == (count_wgmma() > wgmma));
  return result;
}

/// As in sparse_attention_test.cpp: weights are rounded to T, sums are f32.
template <class T>
void check_forward(const Case& c) {
  CAPTURE(to_string(AttentionPattern{{c.pattern}}));
  const Exact exact = dense_masked<T>(c, /*gradients=*/false);
  const Forward<T> ours = forward<T>(c);
  CHECK(ours.used_kernel == has_kernel());
  CHECK(near(ours.o, exact.value.o, exact.size.o, 8 * 1.2e-7 + kRounding<T>.relative));
  for (size_t i = 0; i < ours.lse.size(); ++i) {
    const double lse = exact.value.lse.at(i);
    if (std::isinf(lse))
      REQUIRE(ours.lse[i] == -INFINITY);
    else
      REQUIRE(std::abs(ours.lse[i] - lse) <= 8 * 1.2e-7 * exact.size.lse[i]);
  }
}

}  // namespace

// Tiles are of 128 queries and keys, rings of two: n across tiles, rings gone round, blocks and runs across tiles.
TEST_CASE_TEMPLATE("attention of sm_90a: equals dense attention under the mask", T, bf16, f16) {
  check_forward<T>({2, 300, 1, 64, 64, layer("dense")});
  if (under_tsan()) return;  // the same threads again
  check_forward<T>({1, 257, 2, 64, 64, layer("dense")});
  check_forward<T>({1, 700, 1, 64, 64, layer("fixed_block(stride=200) + fixed_summary(stride=200, c=128)")});
  check_forward<T>({1, 513, 1, 64, 64, layer("local(window=300)")});
  check_forward<T>({1, 400, 1, 64, 64, layer("local(window=270) + global(n=40)")});
}

TEST_CASE("attention of sm_90a: fixed blocks with summaries of sub-blocks") {
  // The last block is cut off, and the second head has other columns.
  const LayerPattern pattern = layer("fixed_block(stride=64) + fixed_summary(stride=64, c=32, sub_blocks=2)");
  check_forward<bf16>({1, 530, 2, 64, 64, pattern});
  if (!under_tsan()) check_forward<f16>({2, 520, 2, 64, 64, pattern});
}

TEST_CASE("attention of sm_90a: rows without keys" * doctest::skip(under_tsan())) {
  check_forward<bf16>({1, 640, 1, 64, 64, layer("fixed_summary(stride=160, c=64)")});
}

#if !LACUNA_ON_GPU
TEST_CASE("attention of sm_90a: other GPUs compute the same") {
  const emulation::ComputeCapability ampere(8, 0);
  check_forward<bf16>({2, 300, 1, 64, 64, layer("dense")});
  if (under_tsan()) return;
  check_forward<f16>(
      {1, 290, 2, 64, 64, layer("fixed_block(stride=64) + fixed_summary(stride=64, c=32, sub_blocks=2)")});
}
#endif

TEST_CASE("attention of sm_90a: chosen where it can compute, and there alone" * doctest::skip(under_tsan())) {
  const auto chosen = [](const Case& c) { return forward<bf16>(c).used_kernel; };
  const Case dense{1, 256, 1, 64, 64, layer("dense")};
  CHECK(chosen(dense) == has_kernel());
#if !LACUNA_ON_GPU
  for (const auto& [major, minor] : {std::pair(8, 0), std::pair(8, 9), std::pair(10, 0), std::pair(12, 0)}) {
    const emulation::ComputeCapability other(major, minor);
    CHECK(!chosen(dense));
  }
#endif
  CHECK(!chosen({1, 255, 1, 64, 64, layer("dense")}));  // too few keys
  CHECK(!chosen({1, 256, 1, 32, 64, layer("dense")}));
  CHECK(!chosen({1, 256, 1, 64, 128, layer("dense")}));
  CHECK(!chosen({1, 300, 1, 64, 64, layer("local(window=128)")}));
  CHECK(!chosen({1, 600, 1, 64, 64, layer("fixed_block(stride=60) + fixed_summary(stride=60, c=30)")}));  // 128 % 30
  const char* const longer_than_any_map =
      "fixed_block(stride=1099511627776) + fixed_summary(stride=1099511627776, c=32)";
  CHECK(!chosen({1, 256, 1, 64, 64, layer(longer_than_any_map)}));
  CHECK(!chosen({1, 740, 1, 64, 64, layer("fixed_summary(stride=160, c=64)")}));  // columns beyond the last whole block
}

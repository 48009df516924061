#include "core/allocator.h"

#include <doctest/doctest.h>

#include <cstring>
#include <thread>
#include <vector>

#include "core/cuda/runtime.h"
#include "core/error.h"
#include "core/tensor.h"
#include "tests/support/expect_error.h"

using namespace lacuna;

namespace {

constexpr int64_t kMiB = 1 << 20;

Allocator& cpu() { return Allocator::of(kCpu); }

int64_t current(MemoryCategory category) { return cpu().stats().current[static_cast<size_t>(category)]; }
int64_t peak(MemoryCategory category) { return cpu().stats().peak[static_cast<size_t>(category)]; }

/// Lifts the limit again, whatever happens.
struct Limit {
  explicit Limit(int64_t bytes) { cpu().set_limit(bytes); }
  ~Limit() { cpu().set_limit(0); }
};

}  // namespace

TEST_CASE("allocator: blocks are aligned, writable over their length and distinct") {
  std::vector<std::pair<void*, int64_t>> blocks;
  for (const int64_t bytes : {0, 1, 63, 64, 65, 1000, 1025, 4097, 1 << 20, (1 << 20) + 1}) {
    void* const block = cpu().allocate(bytes, MemoryCategory::workspace);
    CHECK(reinterpret_cast<uintptr_t>(block) % 64 == 0);
    std::memset(block, static_cast<int>(blocks.size()), static_cast<size_t>(bytes));
    blocks.emplace_back(block, bytes);
  }
  for (size_t i = 0; i < blocks.size(); ++i) {
    const auto* const data = static_cast<const unsigned char*>(blocks[i].first);
    for (int64_t k = 0; k < blocks[i].second; ++k) REQUIRE(data[k] == i);
    cpu().deallocate(blocks[i].first, blocks[i].second, MemoryCategory::workspace);
  }
  expect_error("cannot allocate -1 bytes", [] { cpu().allocate(-1, MemoryCategory::workspace); });
}

TEST_CASE("allocator: memory counts under the category of the scope that allocates it, until it is freed") {
  const int64_t optimizer = current(MemoryCategory::optimizer), activations = current(MemoryCategory::activations);
  {
    Tensor outer, inner, plain;
    CHECK(MemoryScope::current() == MemoryCategory::activations);
    {
      const MemoryScope scope(MemoryCategory::optimizer);
      outer = empty({kMiB}, DType::u8);
      {
        const MemoryScope nested(MemoryCategory::gradients);
        inner = empty({2 * kMiB}, DType::u8);
      }
      CHECK(MemoryScope::current() == MemoryCategory::optimizer);
    }
    plain = empty({kMiB}, DType::u8);
    CHECK(current(MemoryCategory::optimizer) == optimizer + kMiB);
    CHECK(current(MemoryCategory::activations) == activations + kMiB);
    CHECK(current(MemoryCategory::gradients) >= 2 * kMiB);
  }
  CHECK(current(MemoryCategory::optimizer) == optimizer);
  CHECK(current(MemoryCategory::activations) == activations);
}

TEST_CASE("allocator: the scope of one thread is not that of another") {
  const MemoryScope scope(MemoryCategory::parameters);
  MemoryCategory seen{};
  std::thread([&] { seen = MemoryScope::current(); }).join();
  CHECK(seen == MemoryCategory::activations);
}

TEST_CASE("allocator: peaks are the worst moments, by category and in sum") {
  cpu().reset_peak();
  const MemoryStats before = cpu().stats();
  CHECK(before.total_peak == before.total_current);
  {
    const MemoryScope scope(MemoryCategory::gradients);
    empty({8 * kMiB}, DType::u8);
  }
  {
    const MemoryScope scope(MemoryCategory::optimizer);
    empty({4 * kMiB}, DType::u8);
  }
  const auto gradients = static_cast<size_t>(MemoryCategory::gradients);
  const auto optimizer = static_cast<size_t>(MemoryCategory::optimizer);
  CHECK(peak(MemoryCategory::gradients) == before.current[gradients] + 8 * kMiB);
  CHECK(peak(MemoryCategory::optimizer) == before.current[optimizer] + 4 * kMiB);
  CHECK(cpu().stats().total_peak == before.total_current + 8 * kMiB);  // not 12: they were not there together
  CHECK(cpu().stats().total_current == before.total_current);
  cpu().reset_peak();
  CHECK(peak(MemoryCategory::gradients) == before.current[gradients]);
}

TEST_CASE("allocator: freed blocks are reused by requests of about their size, and returned on demand") {
  cpu().release_cached();
  CHECK(cpu().stats().cached == 0);
  void* const first = cpu().allocate(kMiB, MemoryCategory::workspace);
  cpu().deallocate(first, kMiB, MemoryCategory::workspace);
  CHECK(cpu().stats().cached == kMiB);
  void* const second = cpu().allocate(kMiB - 1000, MemoryCategory::workspace);
  CHECK(second == first);
  CHECK(cpu().stats().cached == 0);
  cpu().deallocate(second, kMiB - 1000, MemoryCategory::workspace);
  cpu().release_cached();
  CHECK(cpu().stats().cached == 0);
}

TEST_CASE("allocator: beyond the limit the error names the request, the holders and what to change") {
  cpu().release_cached();
  const int64_t live = cpu().stats().total_current;
  const MemoryScope scope(MemoryCategory::gradients);
  const Tensor holder = empty({3 * kMiB}, DType::u8);
  const Limit limit(live + 8 * kMiB);
  const std::string message = message_of([] { cpu().allocate(6 * kMiB, MemoryCategory::workspace); });
  CHECK(contains(message, "out of memory on cpu: 6.0 MiB for workspace requested"));
  CHECK(contains(message, "gradients 3.0 MiB"));
  CHECK(contains(message, "limit 8."));
  CHECK(contains(message, "--batch-tokens"));
  CHECK(cpu().stats().total_current == live + 3 * kMiB);  // a refused request holds nothing
  CHECK(empty({5 * kMiB}, DType::u8).defined());          // and what fits still fits
}

TEST_CASE("allocator: cached blocks make room before a request is refused") {
  cpu().release_cached();
  const Limit limit(cpu().stats().total_current + 8 * kMiB);
  empty({6 * kMiB}, DType::u8);
  CHECK(cpu().stats().cached == 6 * kMiB);
  CHECK(empty({7 * kMiB}, DType::u8).defined());  // 13 MiB with the cached block
}

TEST_CASE("allocator: a request that no machine can meet is out of memory, not a crash") {
  for (const int64_t bytes : {int64_t{1} << 50, INT64_MAX})
    expect_error("out of memory on cpu", [&] { cpu().allocate(bytes, MemoryCategory::activations); });
  expect_error("out of memory on cpu", [] { empty({int64_t{1} << 60}, DType::f32); });
  if (gpu::device_count() == 0) expect_error("cuda:0: " + gpu::why_no_device(), [] { Allocator::of(kCuda); });
}

TEST_CASE("allocator: threads share it") {
  const int64_t before = cpu().stats().total_current;
  std::vector<int> damaged(4);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&damaged, t] {
      std::vector<Tensor> held(8);
      for (int i = 0; i < 2000; ++i) {
        Tensor& slot = held[static_cast<size_t>(i % 8)];
        if (slot.defined()) damaged[static_cast<size_t>(t)] += slot.data<int32_t>()[slot.numel() - 1] != t;
        slot = full({1 + (i * 37) % 1000}, DType::i32, t);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(damaged == std::vector<int>(4));
  CHECK(cpu().stats().total_current == before);
}

TEST_CASE("MemoryCategory: every category has a name of its own") {
  CHECK(name_of(MemoryCategory::parameters) == "parameters");
  CHECK(name_of(MemoryCategory::gradients) == "gradients");
  CHECK(name_of(MemoryCategory::optimizer) == "optimizer");
  CHECK(name_of(MemoryCategory::activations) == "activations");
  CHECK(name_of(MemoryCategory::workspace) == "workspace");
}

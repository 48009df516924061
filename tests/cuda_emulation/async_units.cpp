// The entry points of async_execution.h.

#include "tests/cuda_emulation/async_units.h"
#include "tests/cuda_emulation/scheduler.h"

namespace lacuna::emulation {

Observed::Observed(const char* name) {
  if (!under_tsan()) return;
  fiber_ = __tsan_create_fiber(0);
  if (__tsan_set_fiber_name) __tsan_set_fiber_name(fiber_, name);
}

Observed::~Observed() {
  if (fiber_) __tsan_destroy_fiber(fiber_);
}

size_t AsyncProxy::address(const void* p, size_t bytes, size_t alignment, const char* what, Location where) const {
  const auto* const begin = static_cast<const std::byte*>(p);
  if (begin < memory_ || begin + bytes > memory_ + seen_.size())
    fail(where, "%s is not in dynamic shared memory of the block", what);
  const size_t address = kBase + size_t(begin - memory_);
  if (address % alignment) fail(where, "%s is not aligned to %zu bytes", what, alignment);
  return address;
}

const std::byte* AsyncProxy::read(size_t address, size_t bytes, Location where) const {
  if (address < kBase || address - kBase + bytes > seen_.size())
    fail(where, "an operand of wgmma outside of shared memory");
  if (std::memcmp(memory_ + address - kBase, &seen_[address - kBase], bytes) != 0)
    fail(where, "wgmma reads what threads wrote without fence.proxy.async");
  return memory_ + address - kBase;
}

void AsyncProxy::write(size_t address, const std::byte* from, size_t bytes) {
  std::memcpy(memory_ + address - kBase, from, bytes);
  std::memcpy(&seen_[address - kBase], from, bytes);
}

AsyncUnits::AsyncUnits(Block& block, std::byte* shared, size_t bytes, size_t warps)
    : proxy(shared, bytes), copies(block, proxy) {
  for (unsigned warp = 0; warp < warps; ++warp) products.emplace_back(proxy, warp);
}

void AsyncUnits::finish(void* end) {
  copies.finish(end);
  for (size_t warp = 0; warp < products.size(); ++warp)
    if (products[warp].history() != products[warp / 4 * 4].history())
      fail(Location::here(), "the warps of warpgroup %zu did not issue the same wgmma", warp / 4);
}

namespace {

AsyncUnits& units() { return running->units(); }
MatrixUnit& matrix_unit() { return units().products[running->current().warp]; }

struct FenceLane {
  Registers accumulator, operand;
};
struct WaitLane {
  int groups_left;
  const float* finished;
  Location where;
};
struct ProductLane : Product {
  Location where;
};

template <class Lane>
void check_full(const Warp<Lane>& warp, const char* what) {
  if (!warp.full()) fail(Location::here(), "%s needs all 32 lanes, got %08x", what, warp.mask);
}

void run_fence(const Warp<FenceLane>& warp) {
  check_full(warp, "wgmma.fence");
  matrix_unit().fence(warp[0].accumulator, warp[0].operand);
}

void run_commit(const Warp<char>& warp) {
  check_full(warp, "wgmma.commit_group");
  matrix_unit().commit();
}

void run_wait(const Warp<WaitLane>& warp) {
  check_full(warp, "wgmma.wait_group");
  matrix_unit().wait(warp[0].groups_left, warp[0].finished, warp[0].where);
}

void run_product(const Warp<ProductLane>& warp) {
  check_full(warp, "wgmma");
  std::array<void*, 32> products;
  for (int lane = 0; lane < 32; ++lane) products[lane] = static_cast<Product*>(&warp[lane]);
  matrix_unit().begin(Warp<Product>{products.data(), warp.mask}, warp[0].where);
  ++running->counters.wgmma;
}

}  // namespace

uint32_t shared_address(const void* p) {
  const auto* const begin = this_block->dynamic_shared;
  return uint32_t(AsyncProxy::kBase + size_t(static_cast<const std::byte*>(p) - begin));
}

void init_mbarrier(uint64_t* barrier, int arrivals, Location where) {
  if (__tsan_write_range) __tsan_write_range(barrier, sizeof(*barrier));
  const Unobserved unobserved;
  units().copies.init(barrier, arrivals, where);
}

void arrive_at_mbarrier(uint64_t* barrier, int bytes, Location where) {
  if (__tsan_read_range) __tsan_read_range(barrier, sizeof(*barrier));
  const Unobserved unobserved;
  units().copies.arrive(barrier, bytes, where);
  running->let_others_go(where);
}

void wait_for_mbarrier(uint64_t* barrier, int parity, Location where) {
  if (__tsan_read_range) __tsan_read_range(barrier, sizeof(*barrier));
  const Unobserved unobserved;
  units().copies.wait(barrier, parity, where);
}

void copy_box(void* to, const gpu::TensorBox& tensor, uint64_t* barrier, const int (&at)[gpu::kTensorRank],
              Location where) {
  size_t bytes = 2;
  for (const uint32_t size : tensor.box) bytes *= size;
  if (__tsan_write_range) __tsan_write_range(to, bytes);  // the NaN is this thread's
  const Unobserved unobserved;
  units().copies.begin(to, tensor, barrier, at, where);
}

void fence_proxy_async(Location) {
  const Unobserved unobserved;
  units().proxy.publish();
  units().copies.publish();
}

void fence_registers(Registers accumulator, Registers operand, Location where) {
  FenceLane lane{accumulator, operand};
  warp_collective<FenceLane, run_fence>(0xffffffffu, lane, Meeting::aligned, where);
}

void commit_products(Location where) {
  char lane = 0;
  warp_collective<char, run_commit>(0xffffffffu, lane, Meeting::aligned, where);
}

void wait_for_products(int groups_left, const float* finished, Location where) {
  WaitLane lane{groups_left, finished, where};
  warp_collective<WaitLane, run_wait>(0xffffffffu, lane, Meeting::aligned, where);
  matrix_unit().acquire_lane();
}

void multiply(Product product, Location where) {
  if (running->current().warp / 4 * 4 + 4 > this_block->block.x * this_block->block.y * this_block->block.z / 32)
    fail(where, "wgmma needs a whole warpgroup of 128 threads");
  ProductLane lane{product, where};
  matrix_unit().release_lane();
  warp_collective<ProductLane, run_product>(0xffffffffu, lane, Meeting::aligned, where);
}

}  // namespace lacuna::emulation

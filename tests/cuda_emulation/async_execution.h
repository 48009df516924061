#pragma once
// What the emulated device offers to the code of a kernel beside execution.h, of sm_90: the copy unit with its
// mbarriers and the products of warpgroups, which work while the threads go on.

#include <cstddef>
#include <cstdint>

#include "core/cuda/tensor_box.h"
#include "tests/cuda_emulation/execution.h"

namespace lacuna::emulation {

/// The window of addresses in which a block sees its dynamic shared memory, as on a device not from 0 on. Others of the
/// block's shared memory have none.
uint32_t shared_address(const void* p);

void init_mbarrier(uint64_t* barrier, int arrivals, Location where);
void arrive_at_mbarrier(uint64_t* barrier, int bytes, Location where);
void wait_for_mbarrier(uint64_t* barrier, int parity, Location where);
void copy_box(void* to, const gpu::TensorBox& map, uint64_t* barrier, const int (&at)[gpu::kTensorRank],
              Location where);
void fence_proxy_async(Location where);

/// Registers of a thread, which are an array here.
struct Registers {
  const void* begin;
  size_t bytes;
};
void fence_registers(Registers accumulator, Registers operand, Location where);
void commit_products(Location where);
void wait_for_products(int groups_left, const float* finished, Location where);

/// One thread's part in a product.
struct Product {
  float* d;
  const uint32_t* a_registers;  // null: a is in shared memory
  uint64_t a, b;                // descriptors
  int n;
  bool columns, add;
  void (*widen)(const uint16_t* x, float* y, size_t count);
};
void multiply(Product product, Location where);

}  // namespace lacuna::emulation

#pragma once
// Where one warp's 16 rows of its warpgroup's products (wgmma) are computed.

#include <array>
#include <deque>
#include <utility>
#include <vector>

#include "tests/cuda_emulation/async_execution.h"
#include "tests/cuda_emulation/async_proxy.h"

namespace lacuna::emulation {

class MatrixUnit {
 public:
  MatrixUnit(AsyncProxy& proxy, unsigned warp) : proxy_(proxy), rows_(warp % 4 * 16) {}

  void fence(Registers accumulator, Registers operand);
  void commit() { ++open_group_; }
  void begin(const Warp<Product>& warp, Location where);
  void wait(int groups_left, const float* finished, Location where);

  /// The lanes call these before any product and after any wait.
  void release_lane() { release(&begun_); }
  void acquire_lane() { acquire(&done_); }

  /// The products begun so far, by their descriptors.
  const std::vector<std::pair<uint64_t, uint64_t>>& history() const { return history_; }
  void check_idle() const;

 private:
  struct Operands {
    std::vector<uint16_t> a, b;  // [64][16], of registers the warp's alone; [n][16], or by columns [16][n]
    friend bool operator==(const Operands&, const Operands&) = default;
  };
  struct Operation {
    Product product;                              // lane 0's
    std::array<const uint32_t*, 32> a_registers;  // of each lane
    Operands operands;
    int group;
    Location where;
  };
  struct Accumulator {
    std::array<float*, 32> d;  // the registers of each lane, NaN meanwhile
    int n, pending;
    std::vector<float> values;  // [16][n]
  };

  Operands read(const Operation& operation);
  std::vector<uint16_t> read_rows(uint64_t descriptor, int count, bool columns, Location where);
  void finish(const Operation& operation);
  Accumulator* accumulator_of(const float* d);
  bool fenced(const void* registers) const;

  AsyncProxy& proxy_;
  int rows_;  // the first of the warp's
  int open_group_ = 0;
  std::deque<Operation> operations_;
  std::vector<Accumulator> accumulators_;
  std::vector<Registers> fenced_;  // lane 0's, since the last wait
  std::vector<std::pair<uint64_t, uint64_t>> history_;
  std::vector<const std::byte*> pieces_read_;  // 16 bytes each, for ThreadSanitizer
  Observed observed_{"the matrix unit of a warp (wgmma)"};
  char begun_ = 0, done_ = 0;  // for ThreadSanitizer
};

}  // namespace lacuna::emulation

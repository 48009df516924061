#pragma once
// The copy unit (TMA) of a block and the mbarriers to which it reports.

#include <array>
#include <deque>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tests/cuda_emulation/async_execution.h"
#include "tests/cuda_emulation/async_proxy.h"

namespace lacuna::emulation {

class Block;

class CopyUnit {
 public:
  CopyUnit(Block& block, AsyncProxy& proxy) : block_(block), proxy_(proxy) {}

  void init(uint64_t* barrier, int arrivals, Location where);
  void arrive(uint64_t* barrier, int bytes, Location where);
  void wait(uint64_t* barrier, int parity, Location where);
  /// fence.proxy.async: the unit sees the mbarriers initialised before.
  void publish();

  /// Notes a copy, whose destination is NaN until it is performed.
  void begin(void* to, const gpu::TensorBox& tensor, uint64_t* barrier, const int (&at)[gpu::kTensorRank],
             Location where);
  size_t under_way() const { return copies_.size(); }
  void perform(size_t copy);

  /// At the end of the block; `end` as in Block.
  void finish(void* end);

 private:
  struct Mbarrier {
    int arrivals, pending;
    int64_t bytes = 0;  // announced and not there yet
    unsigned phase = 0;
    bool published = false;
    std::array<char, 2> sync{};                            // for ThreadSanitizer, by the parity of the phase
    std::vector<std::pair<unsigned, unsigned>> waiting{};  // phase, thread
  };
  struct BoxCopy {
    std::byte* to;
    gpu::TensorBox tensor;
    uint64_t* barrier;
    std::array<int64_t, gpu::kTensorRank> at;
    size_t bytes;
    Location where;
    std::unique_ptr<char> begun;  // for ThreadSanitizer
  };

  Mbarrier& at(uint64_t* barrier, Location where);
  void end_phase_if_complete(Mbarrier& barrier);

  Block& block_;
  AsyncProxy& proxy_;
  Observed observed_{"the copy unit (TMA)"};
  std::unordered_map<const uint64_t*, Mbarrier> barriers_;
  std::deque<BoxCopy> copies_;
};

}  // namespace lacuna::emulation

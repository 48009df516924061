#pragma once
#include <bit>

#include "core/rng.h"
#include "core/tensor.h"

namespace lacuna {

/// Which elements of a batch a dropout zeroes.
struct DropoutMask {
  Rng rng;
  Rng::Place first;    // of the batch's first row; row b is sample first.sample + b
  uint32_t threshold;  // 16-bit words below it drop their element: rate * 2^16, in 1..65535

  double scale() const { return 65536.0 / (65536.0 - threshold); }  // 1 / (1 - rate)

  /// The key and the counter under which rng.bits(place, group) calls Philox (RNG scheme v1, core/rng.h).
  Philox::Key key() const { return std::bit_cast<Philox::Key>(rng); }
  static Philox::Block counter(Rng::Place place, int64_t group) {
    const auto g = static_cast<uint64_t>(group), s = static_cast<uint64_t>(place.sample);
    return {{static_cast<uint32_t>(g),
             (static_cast<uint32_t>(g >> 32) & 0xffu) | (static_cast<uint32_t>(place.op) & 0xffffu) << 8 |
                 (static_cast<uint32_t>(s >> 32) & 0xffu) << 24,
             static_cast<uint32_t>(s), static_cast<uint32_t>(place.step)}};
  }
};

namespace cpu {

/// y = x scaled where the mask keeps it, 0 elsewhere. Its own gradient: dx from dy is the same map.
void dropout(Stream stream, const Tensor& x, const DropoutMask& mask, const Tensor& y);

}  // namespace cpu
}  // namespace lacuna

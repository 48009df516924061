#pragma once
// Random numbers without state: Philox4x32-10 (Salmon et al. 2011), addressed by what a number is for.
//
// RNG scheme v1. The key is a hash of (seed, purpose). The 128-bit counter holds step (32 bits), sample in the step's
// global batch (40), op (16) and group of four numbers (40), as words from the least significant
//   group low 32 | sample high 8, op 16, group high 8 | sample low 32 | step.
// Nothing in it depends on threads, ranks, tiles or the order of calls, so a number can be drawn again at any time:
// in recomputation, after a resume, on another device.

#include <array>
#include <cstdint>

#if defined(__CUDACC__)
#define LACUNA_HOST_DEVICE __host__ __device__
#else
#define LACUNA_HOST_DEVICE
#endif

namespace lacuna {

struct Philox {
  struct Block {
    uint32_t word[4];
  };
  struct Key {
    uint32_t word[2];
  };

  /// Ten rounds over `counter` (least significant word first), as Random123's philox4x32.
  LACUNA_HOST_DEVICE static Block block(Block counter, Key key) {
    for (int round = 0; round < 10; ++round) {
      const uint64_t p0 = uint64_t{0xD2511F53u} * counter.word[0];
      const uint64_t p1 = uint64_t{0xCD9E8D57u} * counter.word[2];
      counter = {{static_cast<uint32_t>(p1 >> 32) ^ counter.word[1] ^ key.word[0], static_cast<uint32_t>(p1),
                  static_cast<uint32_t>(p0 >> 32) ^ counter.word[3] ^ key.word[1], static_cast<uint32_t>(p0)}};
      key.word[0] += 0x9E3779B9u;
      key.word[1] += 0xBB67AE85u;
    }
    return counter;
  }
};

/// What random numbers are for; part of the key, so purposes never share numbers. Values are frozen (scheme v1).
enum class RandomPurpose : uint32_t { init = 1, dropout = 2, data_order = 3, sampling = 4, test = 5 };

/// A family of random numbers: all that belong to one seed and purpose.
class Rng {
 public:
  static constexpr int kScheme = 1;

  Rng(uint64_t seed, RandomPurpose purpose) : key_(hash_key(seed, purpose)) {}

  /// The logical place of a group of four numbers.
  struct Place {
    int64_t step = 0;    // optimizer step, taken modulo 2^32
    int64_t sample = 0;  // sample in the step's global batch, modulo 2^40
    int64_t op = 0;      // which draw of the model: tensor, or 2 * layer + site; modulo 2^16
  };

  /// Four independent uniform 32-bit words; `group` modulo 2^40.
  LACUNA_HOST_DEVICE Philox::Block bits(Place place, int64_t group) const {
    return Philox::block(counter(place, group), key_);
  }

  /// The counter and the key of bits(), for kernels that compute many blocks at a time.
  LACUNA_HOST_DEVICE static Philox::Block counter(Place place, int64_t group) {
    const auto g = static_cast<uint64_t>(group), s = static_cast<uint64_t>(place.sample);
    const uint32_t middle = (static_cast<uint32_t>(s >> 32) & 0xffu) << 24 |
                            (static_cast<uint32_t>(place.op) & 0xffffu) << 8 | (static_cast<uint32_t>(g >> 32) & 0xffu);
    return {{static_cast<uint32_t>(g), middle, static_cast<uint32_t>(s), static_cast<uint32_t>(place.step)}};
  }
  LACUNA_HOST_DEVICE Philox::Key key() const { return key_; }

  /// Element `index` of an endless sequence at `place`, uniform in [0, 1) with 53 random bits.
  LACUNA_HOST_DEVICE double uniform(Place place, int64_t index) const {
    const Philox::Block b = bits(place, index / 2);
    return index % 2 == 0 ? to_unit(b.word[0], b.word[1]) : to_unit(b.word[2], b.word[3]);
  }

  /// Element `index` of a sequence at `place`, standard normal (Box-Muller).
  double normal(Place place, int64_t index) const;

 private:
  static Philox::Key hash_key(uint64_t seed, RandomPurpose purpose) {
    const Philox::Block hash = Philox::block(
        {{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), static_cast<uint32_t>(purpose), 0}},
        {{0x4C616375u, 0x6E610001u}});  // "Lacuna", scheme 1
    return {{hash.word[0], hash.word[1]}};
  }

  LACUNA_HOST_DEVICE static double to_unit(uint32_t high, uint32_t low) {  // 53 bits, [0, 1)
    return static_cast<double>((uint64_t{high} << 32 | low) >> 11) * 0x1p-53;
  }

  Philox::Key key_;
};

}  // namespace lacuna

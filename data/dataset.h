#pragma once
// Sequences of bytes to learn from.

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "core/tensor.h"

namespace lacuna {

enum class Split : uint8_t { train, valid, test };
std::string_view name_of(Split split);
Split parse_split(std::string_view name);  // throws UsageError for a name that is none

/// A set of byte sequences with a fixed train/valid/test split. Batches are pure functions of (seed, step).
class Dataset {
 public:
  virtual ~Dataset() = default;

  /// One line: what it is, how large, and whether scores on it compare with the paper's.
  virtual std::string description() const = 0;

  /// Identifies the content (name, byte counts, hash): a resumed run must see the same.
  virtual std::string fingerprint() const = 0;

  /// Length of a full sequence.
  virtual int64_t n_ctx() const = 0;

  /// The training sequences of optimizer step `step`: u8 [batch, n_ctx].
  virtual Tensor train_batch(uint64_t seed, int64_t step, int64_t batch) const = 0;

  /// Training sequences in one epoch.
  virtual int64_t epoch_size() const = 0;

  /// The sequences of a split in order, for evaluation. They cover every byte of it once; of a text the last one may
  /// be shorter than n_ctx. window() gives u8 [1, length].
  virtual int64_t n_windows(Split split) const = 0;
  virtual Tensor window(Split split, int64_t index) const = 0;

  /// All bytes of a split, in order, as they are scored.
  virtual std::string_view bytes(Split split) const = 0;
};

}  // namespace lacuna

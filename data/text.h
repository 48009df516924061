#pragma once
// Any file as text: a sequence of bytes.

#include <filesystem>

#include "data/dataset.h"

namespace lacuna {

/// The bytes of a file, in order: the first 90 % train, the next 5 % validate, the last 5 % test (enwik8:
/// 90/5/5 million). enwik8 is recognized by size and MD5; anything else is described as not comparable with the paper.
/// The file is memory-mapped. Training windows do not overlap and begin at a random offset in [0, n_ctx) that each
/// epoch draws anew; their order is a keyed permutation. An epoch has the windows that fit after any offset, so that
/// all epochs have as many.
///
/// `path` is the file, or a folder with exactly one regular file or one named enwik8 (hidden files do not count).
/// Throws Error that names the path for one that is missing, unreadable or empty, and UsageError when n_ctx < 1 or a
/// split is shorter than one sequence of n_ctx (the train split) or empty (the others).
std::unique_ptr<Dataset> open_text(const std::filesystem::path& path, int64_t n_ctx);

}  // namespace lacuna

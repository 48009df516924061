#pragma once
// CIFAR-10, binary version.

#include <filesystem>
#include <vector>

#include "data/dataset.h"

namespace lacuna {

/// CIFAR-10 images as sequences of 3072 bytes: rows, columns, then channels (R, G, B) fastest, unscaled.
/// 48,000 images train, 2,000 validate (Sec. 7.1), 10,000 test. The split is the authors' later code's: the first 2,000
/// entries of NumPy's legacy permutation of 50,000 with seed 11172018 validate, the rest train in order. Training order
/// is a keyed permutation per epoch. The files are memory-mapped and reordered image by image; bytes() alone makes a
/// copy. The real images are recognized by a hash of each set, whatever the order of records; others are described as
/// not comparable with the paper.
///
/// `path` is a folder with data_batch_1.bin to data_batch_5.bin and test_batch.bin (or with cifar-10-batches-bin/ in
/// it), or one of these files. Throws Error that names the file for one that is missing, unreadable, of another size
/// than 30,730,000 bytes, or with a label above 9.
std::unique_ptr<Dataset> open_cifar10(const std::filesystem::path& path);

/// The 50,000 image numbers: 2,000 validation, then 48,000 training.
std::vector<int32_t> cifar10_split();

}  // namespace lacuna

#include "data/cifar10.h"

#include <algorithm>
#include <array>
#include <bit>
#include <mutex>
#include <numeric>
#include <random>

#include "core/error.h"
#include "core/file.h"
#include "core/parallel.h"
#include "data/permutation.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPlane = 32 * 32, kChannels = 3, kPixels = kPlane * kChannels;
constexpr int64_t kRecord = 1 + kPixels;  // label, then the R, G and B planes
constexpr int64_t kRecordsPerFile = 10'000, kFileBytes = kRecordsPerFile * kRecord;
constexpr int64_t kImages = 60'000, kTrainImages = 50'000, kValid = 2'000;
constexpr std::array<const char*, 6> kFiles{"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin",
                                            "data_batch_4.bin", "data_batch_5.bin", "test_batch.bin"};

// Sums, modulo 2^64, of the record hashes of the real 50,000 and 10,000 images: the sets, whatever their order.
constexpr uint64_t kTrainSet = 0xd17523651dcf9c79, kTestSet = 0xab21d127e2bbe125;

/// Planes to pixels: row, column, then channel fastest.
void write_pixels(std::string_view record, char* out) {
  const char* planes = record.data() + 1;
  for (int64_t p = 0; p < kPlane; ++p)
    for (int64_t c = 0; c < kChannels; ++c) out[p * kChannels + c] = planes[c * kPlane + p];
}

uint64_t hash_record(std::string_view record) { return std::stoull(sha256(record).substr(0, 16), nullptr, 16); }

std::string_view record_in(std::string_view file, int64_t index) {
  return file.substr(static_cast<size_t>(index * kRecord), static_cast<size_t>(kRecord));
}

fs::path find_folder(const fs::path& path) {
  constexpr const char* kNeeded =
      " (needed: a folder with data_batch_1.bin to data_batch_5.bin and test_batch.bin, the binary version of "
      "CIFAR-10; `scripts/get_data cifar10` fetches it)";
  std::error_code error, ignored;
  const fs::file_status status = fs::status(path, error);
  check(status.type() != fs::file_type::not_found, "CIFAR-10: no such folder: '", path.string(), "'", kNeeded);
  check(status.type() != fs::file_type::none, "CIFAR-10: cannot read '", path.string(), "': ", error.message());
  if (!fs::is_directory(status) && std::find(kFiles.begin(), kFiles.end(), path.filename()) != kFiles.end())
    return find_folder(fs::absolute(path).parent_path());  // any of the files stands for all
  check(fs::is_directory(status), "CIFAR-10: not a folder: '", path.string(), "'", kNeeded);
  fs::directory_iterator(path, error);
  check(!error, "CIFAR-10: cannot read folder '", path.string(), "': ", error.message());
  const auto holds_any = [&](const fs::path& folder) {
    return std::any_of(kFiles.begin(), kFiles.end(),
                       [&](const char* name) { return fs::exists(folder / name, ignored); });
  };
  for (const fs::path& folder : {path, path / "cifar-10-batches-bin"})
    if (holds_any(folder)) {
      for (const char* name : kFiles)
        check(fs::exists(folder / name, ignored), "CIFAR-10: '", name, "' is missing in '", folder.string(), "'",
              kNeeded);
      return folder;
    }
  const bool python = fs::exists(path / "data_batch_1", ignored) || fs::exists(path / "cifar-10-batches-py", ignored);
  fail("CIFAR-10: no CIFAR-10 in '", path.string(), "'", python ? ": it holds the Python version" : "", kNeeded);
}

class Cifar10 final : public Dataset {
 public:
  explicit Cifar10(const fs::path& path) {
    const fs::path folder = find_folder(path);
    for (const char* name : kFiles) {
      const auto& file = files_.emplace_back(std::make_unique<MappedFile>(folder / name));
      check(file->size() == kFileBytes, "CIFAR-10: '", (folder / name).string(), "' must be ", kFileBytes,
            " bytes (10,000 records of 3,073), got ", file->size());
      for (int64_t i = 0; i < kRecordsPerFile; ++i) {
        const int label = static_cast<unsigned char>(record_in(file->bytes(), i)[0]);
        check(label <= 9, "CIFAR-10: '", (folder / name).string(), "': record ", i, " has label ", label,
              ", must be at most 9");
      }
    }
    const std::vector<int32_t> split = cifar10_split();
    images(Split::valid).assign(split.begin(), split.begin() + kValid);
    images(Split::train).assign(split.begin() + kValid, split.end());
    images(Split::test).resize(kImages - kTrainImages);
    std::iota(images(Split::test).begin(), images(Split::test).end(), static_cast<int32_t>(kTrainImages));
  }

  std::string description() const override {
    const Hashes& hashes = this->hashes();
    const bool real = hashes.train_set == kTrainSet && hashes.test_set == kTestSet;
    return concat("CIFAR-10: 48,000 train, 2,000 validation, 10,000 test images of 3,072 bytes; ",
                  real ? "test scores compare with the paper's"
                       : "NOT the real images (another hash): scores do not compare with the paper's");
  }

  std::string fingerprint() const override {
    return concat("cifar10 ", kImages * kRecord, " bytes sha256-of-records ", hashes().in_order);
  }

  int64_t n_ctx() const override { return kPixels; }
  int64_t epoch_size() const override { return n_windows(Split::train); }
  int64_t n_windows(Split split) const override { return static_cast<int64_t>(images(split).size()); }

  Tensor train_batch(uint64_t seed, int64_t step, int64_t batch) const override {
    check(step >= 0 && batch >= 1, "CIFAR-10: a batch needs step >= 0 and batch >= 1, got ", step, " and ", batch);
    const Tensor out = empty({batch, kPixels}, DType::u8);
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t sample = step * batch + b;  // of the whole run
      const KeyedPermutation order(epoch_size(), seed, sample / epoch_size());
      const auto image = static_cast<size_t>(order(sample % epoch_size()));
      write_pixels(record(images(Split::train)[image]), reinterpret_cast<char*>(out.raw()) + b * kPixels);
    }
    return out;
  }

  Tensor window(Split split, int64_t index) const override {
    check(index >= 0 && index < n_windows(split), "CIFAR-10: window must be in [0, ", n_windows(split), "), got ",
          index);
    const Tensor out = empty({1, kPixels}, DType::u8);
    write_pixels(record(images(split)[static_cast<size_t>(index)]), reinterpret_cast<char*>(out.raw()));
    return out;
  }

  std::string_view bytes(Split split) const override {
    Raster& raster = rasters_[static_cast<size_t>(split)];
    std::call_once(raster.once, [&] {
      raster.bytes.resize(images(split).size() * static_cast<size_t>(kPixels));
      for (size_t i = 0; i < images(split).size(); ++i)
        write_pixels(record(images(split)[i]), raster.bytes.data() + i * static_cast<size_t>(kPixels));
    });
    return raster.bytes;
  }

 private:
  /// A split as one run of bytes; made when first asked for, since training does without.
  struct Raster {
    std::once_flag once;
    std::string bytes;
  };

  struct Hashes {
    uint64_t train_set = 0, test_set = 0;
    std::string in_order;
  };

  std::vector<int32_t>& images(Split split) { return images_[static_cast<size_t>(split)]; }
  const std::vector<int32_t>& images(Split split) const { return images_[static_cast<size_t>(split)]; }

  std::string_view record(int64_t image) const {
    return record_in(files_[static_cast<size_t>(image / kRecordsPerFile)]->bytes(), image % kRecordsPerFile);
  }

  const Hashes& hashes() const {
    std::call_once(hashed_, [this] {
      std::vector<uint64_t> each(kImages);
      parallel_for(
          kImages,
          [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) each[static_cast<size_t>(i)] = hash_record(record(i));
          },
          /*grain=*/1000);
      hashes_.train_set = std::accumulate(each.begin(), each.begin() + kTrainImages, uint64_t{0});
      hashes_.test_set = std::accumulate(each.begin() + kTrainImages, each.end(), uint64_t{0});
      hashes_.in_order = sha256({reinterpret_cast<const char*>(each.data()), each.size() * sizeof(uint64_t)});
    });
    return hashes_;
  }

  std::vector<std::unique_ptr<MappedFile>> files_;
  std::array<std::vector<int32_t>, 3> images_;  // of each split: numbers in [0, 60,000), test from 50,000 on
  mutable std::array<Raster, 3> rasters_;
  mutable std::once_flag hashed_;
  mutable Hashes hashes_;
};

}  // namespace

std::vector<int32_t> cifar10_split() {
  // numpy.random.RandomState(11172018).permutation(50000): MT19937, Fisher-Yates from the end, and each draw the next
  // word under the least mask of ones that covers it, drawn again while it is too large.
  std::mt19937 words(11172018);
  std::vector<int32_t> images(kTrainImages);
  std::iota(images.begin(), images.end(), 0);
  for (uint32_t last = kTrainImages - 1; last > 0; --last) {
    const uint32_t mask = std::bit_ceil(last + 1) - 1;
    uint32_t chosen;
    do chosen = static_cast<uint32_t>(words()) & mask;
    while (chosen > last);
    std::swap(images[chosen], images[last]);
  }
  return images;
}

std::unique_ptr<Dataset> open_cifar10(const std::filesystem::path& path) { return std::make_unique<Cifar10>(path); }

}  // namespace lacuna

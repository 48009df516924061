#include "data/cifar10.h"

#include <doctest/doctest.h>

#include <array>
#include <set>

#include "core/file.h"
#include "data/permutation.h"
#include "tests/data/messages.h"
#include "tests/support/without_privileges.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kRecord = 3073, kPixels = 3072;
const std::array<std::string, 6> kFiles{"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin",
                                        "data_batch_4.bin", "data_batch_5.bin", "test_batch.bin"};

/// A made-up picture: its number in the channels of the first pixel, a pattern of its class in the others.
unsigned char pixel(int64_t image, int64_t channel, int64_t row, int64_t column) {
  if (row == 0 && column == 0) return static_cast<unsigned char>(image >> (8 * channel));
  return static_cast<unsigned char>(image % 10 * 7 + channel * 101 + row * 13 + column * 3);
}

/// The picture as the file has it, planes of rows, behind its label.
std::string record(int64_t image) {
  std::string bytes(1, static_cast<char>(image % 10));
  for (int64_t c = 0; c < 3; ++c)
    for (int64_t y = 0; y < 32; ++y)
      for (int64_t x = 0; x < 32; ++x) bytes += static_cast<char>(pixel(image, c, y, x));
  return bytes;
}

/// The picture as the model reads it.
std::string sequence(int64_t image) {
  std::string bytes;
  for (int64_t y = 0; y < 32; ++y)
    for (int64_t x = 0; x < 32; ++x)
      for (int64_t c = 0; c < 3; ++c) bytes += static_cast<char>(pixel(image, c, y, x));
  return bytes;
}

int64_t number_of(std::string_view sequence) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(sequence[i]); };
  return byte(0) | byte(1) << 8 | byte(2) << 16;
}

std::string text_of(const Tensor& t) {
  return {reinterpret_cast<const char*>(t.raw()), static_cast<size_t>(t.numel())};
}

/// A folder with 60,000 made-up pictures; made once.
const fs::path& pictures() {
  static const TemporaryFolder folder;
  static const bool made = [] {
    std::string ten;  // one of each class; the others differ in their first pixel
    for (int64_t i = 0; i < 10; ++i) ten += record(i);
    for (size_t f = 0; f < kFiles.size(); ++f) {
      std::string bytes;
      for (int i = 0; i < 1'000; ++i) bytes += ten;
      for (int64_t i = 0; i < 10'000; ++i)
        for (int64_t c = 0; c < 3; ++c)
          bytes[static_cast<size_t>(i * kRecord + 1 + c * 1'024)] =
              static_cast<char>(pixel(static_cast<int64_t>(f) * 10'000 + i, c, 0, 0));
      folder.write(kFiles[f], bytes);
    }
    return true;
  }();
  (void)made;
  return folder.path();
}

const Dataset& dataset() {
  static const std::unique_ptr<Dataset> data = open_cifar10(pictures());
  return *data;
}

/// Links to the pictures' files, but for `without`.
void link_pictures(const fs::path& folder, const std::string& without = "") {
  fs::create_directories(folder);
  for (const std::string& name : kFiles)
    if (name != without) fs::create_symlink(pictures() / name, folder / name);
}

std::string error_of(const fs::path& path) {
  return message_of<Error>([&] { open_cifar10(path); });
}

}  // namespace

TEST_CASE("cifar10: the split is NumPy's permutation of seed 11172018") {
  const std::vector<int32_t> split = cifar10_split();
  REQUIRE(split.size() == 50'000);
  CHECK(std::vector<int32_t>(split.begin(), split.begin() + 10) ==
        std::vector<int32_t>{38899, 48321, 12222, 16844, 47067, 26668, 26014, 11553, 17046, 15750});
  CHECK(std::vector<int32_t>(split.begin() + 2'000, split.begin() + 2'004) ==
        std::vector<int32_t>{38375, 21667, 23622, 31132});
  CHECK(std::set<int32_t>(split.begin(), split.end()).size() == 50'000);

  std::string little_endian;
  for (size_t i = 0; i < 2'000; ++i)
    for (int byte = 0; byte < 4; ++byte) little_endian += static_cast<char>(split[i] >> (8 * byte));
  CHECK(sha256(little_endian) == "202eb9f3b6ce1ce733c56b8e87bcd9e6d64c99ea092b370bf973fa67d74c0f16");
}

TEST_CASE("cifar10: windows are the images of a split, channels fastest") {
  const std::vector<int32_t> split = cifar10_split();
  CHECK(dataset().n_ctx() == kPixels);
  CHECK(dataset().n_windows(Split::train) == 48'000);
  CHECK(dataset().n_windows(Split::valid) == 2'000);
  CHECK(dataset().n_windows(Split::test) == 10'000);
  CHECK(dataset().window(Split::valid, 0).shape() == Shape{1, kPixels});
  CHECK(dataset().window(Split::valid, 0).dtype() == DType::u8);
  for (const int64_t i : {0, 1, 1'999}) {
    CHECK(text_of(dataset().window(Split::valid, i)) == sequence(split[static_cast<size_t>(i)]));
    CHECK(text_of(dataset().window(Split::train, i * 24)) == sequence(split[static_cast<size_t>(2'000 + i * 24)]));
    CHECK(text_of(dataset().window(Split::test, i * 5)) == sequence(50'000 + i * 5));
  }
}

TEST_CASE("cifar10: the bytes of a split are its windows in order") {
  for (const Split split : {Split::valid, Split::test, Split::train}) {
    const std::string_view bytes = dataset().bytes(split);
    REQUIRE(static_cast<int64_t>(bytes.size()) == dataset().n_windows(split) * kPixels);
    for (const int64_t i : {int64_t{0}, int64_t{777}, dataset().n_windows(split) - 1})
      CHECK(bytes.substr(static_cast<size_t>(i * kPixels), kPixels) == text_of(dataset().window(split, i)));
  }
}

TEST_CASE("cifar10: an epoch has every training image once, in an order of its own") {
  CHECK(dataset().epoch_size() == 48'000);
  const std::vector<int32_t> split = cifar10_split();
  const std::set<int64_t> expected(split.begin() + 2'000, split.end());
  std::vector<int64_t> first_order;
  for (int64_t epoch = 0; epoch < 2; ++epoch) {
    std::vector<int64_t> order;
    for (int64_t step = epoch * 10; step < (epoch + 1) * 10; ++step) {
      const std::string batch = text_of(dataset().train_batch(/*seed=*/5, step, 4'800));
      for (int64_t b = 0; b < 4'800; ++b)
        order.push_back(number_of(std::string_view(batch).substr(static_cast<size_t>(b * kPixels), 3)));
    }
    CHECK(std::set<int64_t>(order.begin(), order.end()) == expected);
    CHECK(order != first_order);
    first_order = order;
  }
}

TEST_CASE("cifar10: batches depend on seed and step alone") {
  const std::string batch = text_of(dataset().train_batch(1, 6'000, 16));  // begins epoch 2
  dataset().train_batch(1, 0, 3);
  CHECK(text_of(dataset().train_batch(1, 6'000, 16)) == batch);
  CHECK(text_of(open_cifar10(pictures())->train_batch(1, 6'000, 16)) == batch);
  CHECK(text_of(dataset().train_batch(2, 6'000, 16)) != batch);
  CHECK(text_of(dataset().train_batch(1, 6'001, 16)) != batch);
  for (int64_t b = 0; b < 16; ++b)  // sample by sample
    CHECK(text_of(dataset().train_batch(1, 96'000 + b, 1)) == batch.substr(static_cast<size_t>(b * kPixels), kPixels));
  const std::vector<int32_t> split = cifar10_split();
  CHECK(batch.substr(0, kPixels) == sequence(split[static_cast<size_t>(2'000 + KeyedPermutation(48'000, 1, 2)(0))]));
}

TEST_CASE("cifar10: made-up pictures are not called comparable") {
  CHECK(dataset().description() ==
        "CIFAR-10: 48,000 train, 2,000 validation, 10,000 test images of 3,072 bytes; NOT the real images (another "
        "hash): scores do not compare with the paper's");
}

TEST_CASE("cifar10: the fingerprint changes with one pixel and with the order, not with the place") {
  const TemporaryFolder folder;
  link_pictures(folder.path() / "same");
  CHECK(open_cifar10(folder.path() / "same")->fingerprint() == dataset().fingerprint());

  link_pictures(folder.path() / "pixel", "data_batch_2.bin");
  std::string bytes = read_file(pictures() / "data_batch_2.bin");
  bytes[5'000'000] = static_cast<char>(bytes[5'000'000] ^ 1);
  folder.write("pixel/data_batch_2.bin", bytes);
  CHECK(open_cifar10(folder.path() / "pixel")->fingerprint() != dataset().fingerprint());

  link_pictures(folder.path() / "order");
  fs::rename(folder.path() / "order/data_batch_1.bin", folder.path() / "order/spare");
  fs::rename(folder.path() / "order/data_batch_2.bin", folder.path() / "order/data_batch_1.bin");
  fs::rename(folder.path() / "order/spare", folder.path() / "order/data_batch_2.bin");
  CHECK(open_cifar10(folder.path() / "order")->fingerprint() != dataset().fingerprint());
}

TEST_CASE("cifar10: finds the folder that the archive unpacks to, and that of a file") {
  const TemporaryFolder folder;
  link_pictures(folder.path() / "cifar-10-batches-bin");
  for (const fs::path& path : {folder.path(), folder.path() / "cifar-10-batches-bin" / "data_batch_2.bin"})
    CHECK(text_of(open_cifar10(path)->window(Split::test, 3)) == sequence(50'003));
}

TEST_CASE("cifar10: says which file is missing, and how to get the set") {
  const TemporaryFolder folder;
  const std::string needed =
      " (needed: a folder with data_batch_1.bin to data_batch_5.bin and test_batch.bin, the binary version of "
      "CIFAR-10; `scripts/get_data cifar10` fetches it)";
  const std::string here = quoted(folder.path());
  CHECK(error_of(folder.path() / "no") == concat("CIFAR-10: no such folder: ", quoted(folder.path() / "no"), needed));
  CHECK(error_of(folder.path()) == concat("CIFAR-10: no CIFAR-10 in ", here, needed));
  const fs::path file = folder.write("data_batch_1", "");
  CHECK(error_of(file) == concat("CIFAR-10: not a folder: ", quoted(file), needed));
  CHECK(error_of(folder.path()) == concat("CIFAR-10: no CIFAR-10 in ", here, ": it holds the Python version", needed));
  link_pictures(folder.path(), "test_batch.bin");
  CHECK(error_of(folder.path()) == concat("CIFAR-10: 'test_batch.bin' is missing in ", here, needed));
}

TEST_CASE("cifar10: says when a folder cannot be read") {
  const TemporaryFolder folder;
  const fs::path closed = folder.path() / "closed";
  link_pictures(closed);
  fs::permissions(closed, fs::perms::none);
  const WithoutPrivileges not_root;
  CHECK(error_of(closed) == concat("CIFAR-10: cannot read folder ", quoted(closed), ": Permission denied"));
  fs::permissions(closed, fs::perms::owner_all);
}

TEST_CASE("cifar10: refuses a file of the wrong size, with a wrong label, or that is no file") {
  const TemporaryFolder folder;
  link_pictures(folder.path(), "data_batch_4.bin");
  const fs::path bad = folder.write("data_batch_4.bin", "");
  const std::string in_bad = concat("CIFAR-10: ", quoted(bad));
  for (const int64_t size : {int64_t{0}, int64_t{30'729'999}, int64_t{30'730'001}, int64_t{10'000} * 3'074}) {
    fs::resize_file(bad, static_cast<uintmax_t>(size));
    CHECK(error_of(folder.path()) == concat(in_bad, " must be 30730000 bytes (10,000 records of 3,073), got ", size));
  }
  for (const int label : {10, 255}) {
    std::string bytes = read_file(pictures() / "data_batch_4.bin");
    bytes[9'999 * kRecord] = static_cast<char>(label);
    folder.write("data_batch_4.bin", bytes);
    CHECK(error_of(folder.path()) == concat(in_bad, ": record 9999 has label ", label, ", must be at most 9"));
  }
  fs::remove(bad);
  fs::create_directory(bad);
  CHECK(contains(error_of(folder.path()), bad.string()));
}

TEST_CASE("cifar10: refuses windows and batches that do not exist") {
  CHECK(message_of<Error>([] { dataset().window(Split::valid, 2'000); }) ==
        "CIFAR-10: window must be in [0, 2000), got 2000");
  CHECK(message_of<Error>([] { dataset().window(Split::test, -1); }) ==
        "CIFAR-10: window must be in [0, 10000), got -1");
  CHECK(message_of<Error>([] { dataset().train_batch(1, -1, 1); }) ==
        "CIFAR-10: a batch needs step >= 0 and batch >= 1, got -1 and 1");
  CHECK(message_of<Error>([] { dataset().train_batch(1, 0, 0); }) ==
        "CIFAR-10: a batch needs step >= 0 and batch >= 1, got 0 and 0");
}

}  // namespace lacuna

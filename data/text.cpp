#include "data/text.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "data/permutation.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kEnwik8Bytes = 100'000'000;
constexpr std::string_view kEnwik8Md5 = "a1fa5ffddb56f4953e226637dabbb36a";

fs::path find_file(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  check(status.type() != fs::file_type::not_found, "text: no such file or folder: '", path.string(), "'");
  check(status.type() != fs::file_type::none, "text: cannot read '", path.string(), "': ", error.message());
  if (!fs::is_directory(status)) return path;

  std::vector<fs::path> files;
  fs::directory_iterator entry(path, error);
  check(!error, "text: cannot read folder '", path.string(), "': ", error.message());
  for (; entry != fs::directory_iterator(); entry.increment(error)) {
    check(!error, "text: cannot read folder '", path.string(), "': ", error.message());
    const std::string name = entry->path().filename().string();
    if (name[0] != '.' && entry->is_regular_file(error)) files.push_back(entry->path());
  }
  std::sort(files.begin(), files.end());
  for (const fs::path& file : files)
    if (file.filename() == "enwik8") return file;
  check(!files.empty(), "text: no file in folder '", path.string(), "'");
  if (files.size() > 1) {
    constexpr size_t kShown = 8;
    std::string names;
    for (size_t i = 0; i < std::min(files.size(), kShown); ++i)
      names += concat(i == 0 ? "" : ", ", files[i].filename().string());
    fail("text: folder '", path.string(), "' has ", files.size(), " files (", names,
         files.size() > kShown ? ", ..." : "", "); name the one to read");
  }
  return files.front();
}

class Text final : public Dataset {
 public:
  Text(const fs::path& path, int64_t n_ctx) : path_(path), file_(path), n_ctx_(n_ctx) {
    const int64_t size = file_.size();
    check(size > 0, "text: '", path.string(), "' is empty");
    check_usage(n_ctx >= 1, "text: n_ctx must be at least 1, got ", n_ctx);
    const int64_t train = size / 100 * 90 + size % 100 * 90 / 100;  // floor(0.90 size), without overflow
    const int64_t valid_end = size / 100 * 95 + size % 100 * 95 / 100;
    check_usage(train >= n_ctx, "text: n_ctx is ", n_ctx, ", longer than the train split of '", path.string(),
                "': ", train, " of its ", size, " bytes");
    check_usage(valid_end > train && size > valid_end, "text: '", path.string(), "' has ", size,
                " bytes, too few for the validation and test splits (5 % each)");
    const std::string_view all = file_.bytes();
    splits_ = {all.substr(0, static_cast<size_t>(train)),
               all.substr(static_cast<size_t>(train), static_cast<size_t>(valid_end - train)),
               all.substr(static_cast<size_t>(valid_end))};
    // After any offset in [0, n_ctx) at least this many windows fit. A split of less than two windows gives one.
    epoch_size_ = std::max<int64_t>(1, (train - (n_ctx - 1)) / n_ctx);
    n_offsets_ = std::min(n_ctx, train - epoch_size_ * n_ctx + 1);
    is_enwik8_ = size == kEnwik8Bytes && md5(all) == kEnwik8Md5;
  }

  std::string description() const override {
    const auto length = [&](Split split) { return bytes(split).size(); };
    return concat(is_enwik8_ ? "enwik8" : concat("text '", path_.filename().string(), "'"), ": ", file_.size(),
                  " bytes (", length(Split::train), " train, ", length(Split::valid), " validation, ",
                  length(Split::test), " test); ",
                  is_enwik8_ ? "test scores compare with the paper's"
                             : "not enwik8: scores do NOT compare with published numbers");
  }

  std::string fingerprint() const override {
    std::call_once(hashed_, [this] { hash_ = sha256(file_.bytes()); });
    return concat(is_enwik8_ ? "enwik8 " : "text ", file_.size(), " bytes sha256 ", hash_);
  }

  int64_t n_ctx() const override { return n_ctx_; }
  int64_t epoch_size() const override { return epoch_size_; }
  std::string_view bytes(Split split) const override { return splits_[static_cast<size_t>(split)]; }

  Tensor train_batch(uint64_t seed, int64_t step, int64_t batch) const override {
    check(step >= 0 && batch >= 1, "text: a batch needs step >= 0 and batch >= 1, got ", step, " and ", batch);
    const Tensor out = empty({batch, n_ctx_}, DType::u8);
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t sample = step * batch + b, epoch = sample / epoch_size_;  // of the whole run
      const int64_t index = KeyedPermutation(epoch_size_, seed, epoch)(sample % epoch_size_);
      std::memcpy(out.raw() + b * n_ctx_, bytes(Split::train).data() + offset(seed, epoch) + index * n_ctx_,
                  static_cast<size_t>(n_ctx_));
    }
    return out;
  }

  int64_t n_windows(Split split) const override {
    return (static_cast<int64_t>(bytes(split).size()) + n_ctx_ - 1) / n_ctx_;
  }

  Tensor window(Split split, int64_t index) const override {
    check(index >= 0 && index < n_windows(split), "text: window must be in [0, ", n_windows(split), "), got ", index);
    const std::string_view piece =
        bytes(split).substr(static_cast<size_t>(index * n_ctx_), static_cast<size_t>(n_ctx_));
    const Tensor out = empty({1, static_cast<int64_t>(piece.size())}, DType::u8);
    std::memcpy(out.raw(), piece.data(), piece.size());
    return out;
  }

 private:
  /// Where the windows of an epoch begin: uniform in [0, n_offsets_).
  int64_t offset(uint64_t seed, int64_t epoch) const {
    const Rng rng(seed, RandomPurpose::data_order);
    const double u = rng.uniform({.step = epoch, .op = KeyedPermutation::kRounds}, 0);
    return static_cast<int64_t>(u * static_cast<double>(n_offsets_));
  }

  fs::path path_;
  MappedFile file_;
  int64_t n_ctx_;
  int64_t epoch_size_ = 0, n_offsets_ = 0;
  std::array<std::string_view, 3> splits_;
  bool is_enwik8_ = false;
  mutable std::once_flag hashed_;
  mutable std::string hash_;
};

}  // namespace

std::unique_ptr<Dataset> open_text(const std::filesystem::path& path, int64_t n_ctx) {
  return std::make_unique<Text>(find_file(path), n_ctx);
}

}  // namespace lacuna

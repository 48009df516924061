#include "data/text.h"

#include <doctest/doctest.h>
#include <rapidcheck.h>

#include <random>
#include <set>

#include "core/file.h"
#include "tests/data/messages.h"
#include "tests/support/without_privileges.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;

std::string random_bytes(int64_t n, uint32_t seed) {
  std::mt19937 words(seed);
  std::string bytes;
  for (int64_t i = 0; i < n; ++i) bytes += static_cast<char>(words() >> 24);
  return bytes;
}

std::string text_of(const Tensor& t) {
  return {reinterpret_cast<const char*>(t.raw()), static_cast<size_t>(t.numel())};
}

/// Where the windows of an epoch begin in the train split, in the order of training.
std::vector<size_t> epoch_positions(const Dataset& data, uint64_t seed, int64_t epoch) {
  std::vector<size_t> positions;
  for (int64_t i = 0; i < data.epoch_size(); ++i)
    positions.push_back(
        data.bytes(Split::train).find(text_of(data.train_batch(seed, epoch * data.epoch_size() + i, 1))));
  return positions;
}

template <class E>
std::string error_of(const fs::path& path, int64_t n_ctx = 1) {
  return message_of<E>([&] { open_text(path, n_ctx); });
}

}  // namespace

TEST_CASE("text: 90 % trains, 5 % validates, 5 % tests") {
  const TemporaryFolder folder;
  CHECK(rc::check([&] {
    const auto size = *rc::gen::inRange<int64_t>(20, 3'000);
    const std::string content = random_bytes(size, 1);
    const auto data = open_text(folder.write("file", content), 1);
    const std::string_view train = data->bytes(Split::train), valid = data->bytes(Split::valid),
                           test = data->bytes(Split::test);
    RC_ASSERT(std::string(train) + std::string(valid) + std::string(test) == content);
    RC_ASSERT(static_cast<int64_t>(train.size()) == size * 90 / 100);
    RC_ASSERT(static_cast<int64_t>(train.size() + valid.size()) == size * 95 / 100);
  }));
}

TEST_CASE("text: the windows of a split cover every byte once, the last one short") {
  const TemporaryFolder folder;
  CHECK(rc::check([&] {
    const auto n_ctx = *rc::gen::inRange<int64_t>(1, 300);
    const auto size = *rc::gen::inRange<int64_t>(400, 3'000);
    const auto data = open_text(folder.write("file", random_bytes(size, 2)), n_ctx);
    RC_ASSERT(data->n_ctx() == n_ctx);
    for (const Split split : {Split::train, Split::valid, Split::test}) {
      std::string all;
      for (int64_t i = 0; i < data->n_windows(split); ++i) {
        const Tensor window = data->window(split, i);
        RC_ASSERT(window.dtype() == DType::u8);
        RC_ASSERT(window.rank() == 2 && window.dim(0) == 1);
        RC_ASSERT(window.dim(1) == n_ctx || i == data->n_windows(split) - 1);
        all += text_of(window);
      }
      RC_ASSERT(all == data->bytes(split));
    }
  }));
}

TEST_CASE("text: the training windows of an epoch are disjoint and leave less than 2 n_ctx bytes out") {
  const TemporaryFolder folder;
  CHECK(rc::check([&] {
    const auto n_ctx = *rc::gen::inRange<int64_t>(8, 200);  // 8 random bytes say where they are from
    const auto size = *rc::gen::inRange<int64_t>(n_ctx * 100 / 90 + 20, 4'000);
    const auto epoch = *rc::gen::inRange<int64_t>(0, 5);
    const auto data = open_text(folder.write("file", random_bytes(size, 3)), n_ctx);
    const std::vector<size_t> positions = epoch_positions(*data, 1, epoch);
    const std::set<size_t> sorted(positions.begin(), positions.end());
    RC_ASSERT(sorted.size() == positions.size());
    RC_ASSERT(sorted.count(std::string::npos) == 0u);
    size_t next = *sorted.begin();
    RC_ASSERT(static_cast<int64_t>(next) < n_ctx);
    for (const size_t position : sorted) {
      RC_ASSERT(position == next);
      next += static_cast<size_t>(n_ctx);
    }
    RC_ASSERT(next <= data->bytes(Split::train).size());
    RC_ASSERT(static_cast<int64_t>(data->bytes(Split::train).size()) - data->epoch_size() * n_ctx < 2 * n_ctx);
  }));
}

TEST_CASE("text: each epoch draws its offset and order anew, and every offset occurs") {
  const TemporaryFolder folder;
  const auto data = open_text(folder.write("file", random_bytes(2'000, 4)), 10);
  std::set<size_t> offsets;
  std::set<std::vector<size_t>> orders;
  for (int64_t epoch = 0; epoch < 100; ++epoch) {
    std::vector<size_t> positions = epoch_positions(*data, 1, epoch);
    const size_t offset = *std::min_element(positions.begin(), positions.end());
    offsets.insert(offset);
    for (size_t& position : positions) position -= offset;
    orders.insert(positions);
  }
  CHECK(offsets == std::set<size_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
  CHECK(orders.size() == 100);
}

TEST_CASE("text: batches depend on seed and step alone") {
  const TemporaryFolder folder;
  const fs::path file = folder.write("file", random_bytes(5'000, 5));
  const auto data = open_text(file, 64);
  const std::string batch = text_of(data->train_batch(1, 25, 8));  // across the end of an epoch
  REQUIRE(200 / data->epoch_size() != 207 / data->epoch_size());
  data->train_batch(1, 0, 3);
  CHECK(text_of(data->train_batch(1, 25, 8)) == batch);
  CHECK(text_of(open_text(file, 64)->train_batch(1, 25, 8)) == batch);
  CHECK(text_of(data->train_batch(2, 25, 8)) != batch);
  CHECK(text_of(data->train_batch(1, 26, 8)) != batch);
  for (int64_t b = 0; b < 8; ++b)  // sample by sample
    CHECK(text_of(data->train_batch(1, 200 + b, 1)) == batch.substr(static_cast<size_t>(b * 64), 64));
}

TEST_CASE("text: one window may fill the train split") {
  const TemporaryFolder folder;
  const std::string content = random_bytes(100, 6);
  const auto data = open_text(folder.write("file", content), 90);
  CHECK(data->epoch_size() == 1);
  CHECK(text_of(data->train_batch(1, 12, 2)) == content.substr(0, 90) + content.substr(0, 90));
}

TEST_CASE("text: a file far larger than memory is mapped, not read") {
  const TemporaryFolder folder;
  const fs::path file = folder.write("huge", "begin");
  const int64_t size = int64_t{1} << 40;
  std::error_code refused;
  fs::resize_file(file, static_cast<uintmax_t>(size), refused);  // sparse
  if (refused) {
    MESSAGE("skipped: no sparse file of 1 TiB here: ", refused.message());
    return;
  }
  const auto data = open_text(file, 1'000'000);
  CHECK(contains(read_file("/proc/self/maps"), file.string()));
  CHECK(data->n_windows(Split::test) == 54'976);  // 54,975.6
  CHECK(data->window(Split::test, 54'975).shape() == Shape{1, 581'389});
  CHECK(text_of(data->window(Split::train, 0)).substr(0, 6) == std::string("begin\0", 6));
  CHECK(text_of(data->train_batch(1, 12'345'678'901, 1)) == std::string(1'000'000, '\0'));
}

TEST_CASE("text: a folder stands for its only file, or for the enwik8 in it") {
  const TemporaryFolder folder;
  folder.write("book.txt", random_bytes(100, 7));
  folder.write(".hidden", "x");
  fs::create_directory(folder.path() / "more");
  CHECK(contains(open_text(folder.path(), 8)->description(), "'book.txt'"));
  folder.write("enwik8", random_bytes(200, 8));
  CHECK(contains(open_text(folder.path(), 8)->description(), "200 bytes"));
}

TEST_CASE("text: only the real enwik8 is called comparable") {
  const TemporaryFolder folder;
  const fs::path file = folder.write("enwik8", random_bytes(100, 9));
  CHECK(open_text(file, 8)->description() ==
        "text 'enwik8': 100 bytes (90 train, 5 validation, 5 test); not enwik8: scores do NOT compare with published "
        "numbers");
  fs::resize_file(file, 100'000'000);
  CHECK(open_text(file, 8)->description() ==
        "text 'enwik8': 100000000 bytes (90000000 train, 5000000 validation, 5000000 test); not enwik8: scores do NOT "
        "compare with published numbers");
}

TEST_CASE("text: the fingerprint is of the content, not of the name") {
  const TemporaryFolder folder;
  const std::string content = random_bytes(1'000, 10);
  const std::string fingerprint = open_text(folder.write("a", content), 8)->fingerprint();
  CHECK(fingerprint == concat("text 1000 bytes sha256 ", sha256(content)));
  CHECK(open_text(folder.write("b", content), 16)->fingerprint() == fingerprint);
  std::string other = content;
  other[999] = static_cast<char>(other[999] ^ 1);
  CHECK(open_text(folder.write("c", other), 8)->fingerprint() != fingerprint);
}

TEST_CASE("text: the shipped sample is whole") {
  const auto data = open_text(LACUNA_SOURCE_DIR "/data/sample/wikipedia_sample.txt", 256);
  CHECK(data->fingerprint() ==
        "text 984836 bytes sha256 ed4ba54df43b1ccf7937b3bf7416d9b8873322bffd42a211b15f1087b91ea9c0");
  CHECK(data->bytes(Split::test).substr(data->bytes(Split::test).size() - 10) == "  </page>\n");
}

TEST_CASE("text: names the path that is missing, unreadable or empty") {
  const TemporaryFolder folder;
  const fs::path missing = folder.path() / "no";
  CHECK(error_of<Error>(missing) == concat("text: no such file or folder: ", quoted(missing)));
  const fs::path empty = folder.write("empty", "");
  CHECK(error_of<Error>(empty) == concat("text: ", quoted(empty), " is empty"));
  CHECK(contains(error_of<Error>("/dev/null"), "/dev/null"));
  const WithoutPrivileges not_root;
  const fs::path secret = folder.write("secret", "x");
  fs::permissions(secret, fs::perms::none);
  CHECK(contains(error_of<Error>(secret), secret.string()));
  CHECK(contains(error_of<Error>(secret), "Permission denied"));
  fs::create_directory(folder.path() / "closed");
  fs::permissions(folder.path() / "closed", fs::perms::none);
  CHECK(error_of<Error>(folder.path() / "closed") ==
        concat("text: cannot read folder ", quoted(folder.path() / "closed"), ": Permission denied"));
  fs::permissions(folder.path() / "closed", fs::perms::owner_all);
}

TEST_CASE("text: a folder of no file or of several is an error that lists them") {
  const TemporaryFolder folder;
  const std::string here = quoted(folder.path());
  CHECK(error_of<Error>(folder.path()) == concat("text: no file in folder ", here));
  folder.write("b.txt", "x");
  folder.write("a.txt", "x");
  CHECK(error_of<Error>(folder.path()) ==
        concat("text: folder ", here, " has 2 files (a.txt, b.txt); name the one to read"));
  for (char name = '0'; name <= '9'; ++name) folder.write(std::string(1, name), "x");
  CHECK(error_of<Error>(folder.path()) ==
        concat("text: folder ", here, " has 12 files (0, 1, 2, 3, 4, 5, 6, 7, ...); name the one to read"));
}

TEST_CASE("text: n_ctx must fit the train split, and the other splits must have bytes") {
  const TemporaryFolder folder;
  const fs::path file = folder.write("file", random_bytes(100, 11));
  const std::string name = quoted(file);
  CHECK(error_of<UsageError>(file, 91) ==
        concat("text: n_ctx is 91, longer than the train split of ", name, ": 90 of its 100 bytes"));
  CHECK(error_of<UsageError>(file, 0) == "text: n_ctx must be at least 1, got 0");
  const fs::path tiny = folder.write("tiny", "0123456789");
  CHECK(error_of<UsageError>(tiny) ==
        concat("text: ", quoted(tiny), " has 10 bytes, too few for the validation and test splits (5 % each)"));
}

TEST_CASE("text: refuses windows and batches that do not exist") {
  const TemporaryFolder folder;
  const auto data = open_text(folder.write("file", random_bytes(100, 12)), 2);
  CHECK(message_of<Error>([&] { data->window(Split::valid, 3); }) == "text: window must be in [0, 3), got 3");
  CHECK(message_of<Error>([&] { data->window(Split::test, -1); }) == "text: window must be in [0, 3), got -1");
  CHECK(message_of<Error>([&] { data->train_batch(1, -1, 1); }) ==
        "text: a batch needs step >= 0 and batch >= 1, got -1 and 1");
  CHECK(message_of<Error>([&] { data->train_batch(1, 0, 0); }) ==
        "text: a batch needs step >= 0 and batch >= 1, got 0 and 0");
}

}  // namespace lacuna

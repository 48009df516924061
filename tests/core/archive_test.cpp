#include "core/archive.h"

#include <doctest/doctest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <cstring>

#include "core/error.h"
#include "core/file.h"
#include "tests/support/expect_error.h"
#include "tests/support/temporary_folder.h"

using namespace lacuna;
namespace fs = std::filesystem;

namespace {

const fs::path kReference = fs::path(LACUNA_SOURCE_DIR) / "tests/core/data/reference.safetensors";
const fs::path kWritten = fs::path(LACUNA_SOURCE_DIR) / "tests/core/data/written.safetensors";

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.bytes())) == 0;
}

std::vector<std::string> names_in_file_order(const Archive& archive) {
  std::vector<std::string> names;
  for (const auto& [name, entry] : archive.entries()) names.push_back(name);
  std::stable_sort(names.begin(), names.end(), [&](const std::string& a, const std::string& b) {
    const Archive::Entry &x = archive.entries().at(a), &y = archive.entries().at(b);
    return std::pair(x.begin, x.end) < std::pair(y.begin, y.end);
  });
  return names;
}

std::vector<NamedTensor> small_model() {
  return {{"bytes", from_vector(std::vector<uint8_t>{1, 2, 3}, {3})},
          {"weight", from_vector(std::vector<float>{1, -2, 3, -4, 5, -6}, {2, 3})},
          {"scalar", from_vector(std::vector<double>{0.1}, {})},
          {"none", zeros({0, 4}, DType::f32)},
          {"half", full({5}, DType::f16, 1.5)},
          {"brain", full({5}, DType::bf16, -2.5)},
          {"tokens", from_vector(std::vector<int32_t>{7, -7}, {1, 2})},
          {"steps", from_vector(std::vector<int64_t>{INT64_MIN}, {1})}};
}

}  // namespace

TEST_CASE("archive: what is written is read, bit for bit, every dtype") {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "model.safetensors";
  const std::vector<NamedTensor> tensors = small_model();
  const Metadata metadata{{"format", "pt"}, {"config", "{\"n\": 1}\n"}};
  write_archive(path, tensors, metadata);
  CHECK(folder.count() == 1);

  const Archive archive(path);
  CHECK(archive.path() == path);
  CHECK(archive.metadata() == metadata);
  CHECK(archive.entries().size() == tensors.size());
  for (const auto& [name, tensor] : tensors) {
    CHECK(archive.contains(name));
    CHECK(same_bits(archive.read(name), tensor));
  }
  CHECK_FALSE(archive.contains("weights"));
}

TEST_CASE("archive: what is written is, byte for byte, the file that archive_readers_test.py opens") {
  const TemporaryFolder folder;
  write_archive(folder.path() / "a", small_model(), {{"format", "pt"}, {"quote", "\"\xc3\xa9\"\n"}});
  CHECK(read_file(folder.path() / "a") == read_file(kWritten));
}

TEST_CASE("archive: an empty one") {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "empty.safetensors";
  write_archive(path, {});
  CHECK(Archive(path).entries().empty());
  CHECK(Archive(path).metadata().empty());
}

TEST_CASE("archive: views and slices are written as what they show") {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "a.safetensors";
  const Tensor t = from_vector(std::vector<float>{0, 1, 2, 3, 4, 5}, {3, 2});
  write_archive(path, {{"all", t}, {"row", t.slice(1, 2)}});
  CHECK(to_vector<float>(Archive(path).read("row")) == std::vector<float>{2, 3});
}

TEST_CASE("archive: a file of the reference implementation is read") {
  const Archive archive(kReference);
  CHECK(archive.metadata() == Metadata{{"format", "np"}, {"note", "written by the reference implementation"}});
  CHECK(to_vector<double>(archive.read("scalar")) == std::vector<double>{2.5});
  CHECK(archive.read("scalar").rank() == 0);
  CHECK(archive.read("empty").shape() == Shape{0, 3});
  CHECK(to_vector<float>(archive.read("weight")) == std::vector<float>{-2.5, -1.5, -0.5, 0.5, 1.5, 2.5});
  CHECK(archive.read("weight").shape() == Shape{2, 3});
  CHECK(to_vector<f16>(archive.read("half"))[0].bits == 0x3e00);
  CHECK(to_vector<f16>(archive.read("half"))[1].bits == 0x8000);
  CHECK(to_vector<f16>(archive.read("half"))[2].bits == 0x7bff);
  CHECK(to_vector<int64_t>(archive.read("long")) == std::vector<int64_t>{-(int64_t{1} << 62), 7});
  CHECK(to_vector<int32_t>(archive.read("int")) == std::vector<int32_t>{-5, 6});
  CHECK(to_vector<uint8_t>(archive.read("byte")) == std::vector<uint8_t>{0, 255, 7});
  CHECK(to_vector<float>(archive.read("gr\xc3\xb6\xc3\x9f"
                                      "e \"x\"\n")) == std::vector<float>{3.25});
  CHECK(archive.entries().at("flag").dtype == "BOOL");  // in the format, not in Tensor
  expect_error("tensor 'flag': dtype must be one of F64, F32, BF16, F16, I64, I32, U8 to be read, is BOOL",
               [&] { archive.read("flag"); });
}

TEST_CASE("archive: tensors are stored in the order of the reference implementation") {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "a.safetensors";
  const Archive reference(kReference);
  std::vector<std::string> expected = names_in_file_order(reference);
  CHECK(expected.back() == "flag");
  expected.pop_back();
  std::vector<NamedTensor> tensors;
  for (const auto& [name, entry] : reference.entries())
    if (name != "flag") tensors.push_back({name, reference.read(name)});
  write_archive(path, tensors, reference.metadata());
  CHECK(names_in_file_order(Archive(path)) == expected);
}

TEST_CASE("archive: the same content gives the same file, in whatever order it comes") {
  const TemporaryFolder folder;
  std::vector<NamedTensor> tensors = small_model();
  write_archive(folder.path() / "a", tensors);
  std::reverse(tensors.begin(), tensors.end());
  write_archive(folder.path() / "b", tensors);
  CHECK(read_file(folder.path() / "a") == read_file(folder.path() / "b"));
}

TEST_CASE("archive: read_into converts floating dtypes and refuses other shapes and kinds") {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "a.safetensors";
  write_archive(path, small_model());
  const Archive archive(path);

  const Tensor same = zeros({2, 3}, DType::f32), wide = zeros({2, 3}, DType::f64), narrow = zeros({2, 3}, DType::bf16);
  archive.read_into("weight", same);
  archive.read_into("weight", wide);
  archive.read_into("weight", narrow);
  CHECK(to_vector<float>(same) == std::vector<float>{1, -2, 3, -4, 5, -6});
  CHECK(to_vector<double>(wide) == std::vector<double>{1, -2, 3, -4, 5, -6});
  CHECK(to_vector<float>(to_dtype(narrow, DType::f32)) == std::vector<float>{1, -2, 3, -4, 5, -6});
  const Tensor integers = zeros({1, 2}, DType::i32);
  archive.read_into("tokens", integers);
  CHECK(to_vector<int32_t>(integers) == std::vector<int32_t>{7, -7});

  const std::string file = path.string();
  expect_error(file + ": must hold a tensor 'wieght', which is not among its 8", [&] { archive.read("wieght"); });
  expect_error(file + ": tensor 'weight': must have shape [3, 2], has [2, 3]", [&] {
    archive.read_into("weight", zeros({3, 2}, DType::f32));
  });
  expect_error(file + ": tensor 'tokens': must have a dtype that converts to f32, has I32", [&] {
    archive.read_into("tokens", zeros({1, 2}, DType::f32));
  });
  expect_error(file + ": tensor 'weight': must have a dtype that converts to u8, has F32", [&] {
    archive.read_into("weight", zeros({2, 3}, DType::u8));
  });
}

TEST_CASE("archive: files that are none are refused by name") {
  const TemporaryFolder folder;
  expect_error("missing: cannot open for reading: No such file or directory",
               [&] { Archive(folder.path() / "missing"); });
  expect_error("empty: must begin with 8 bytes of header length, has 0 bytes",
               [&] { Archive(folder.write("empty", "")); });
  expect_error("zip: header must be at most",
               [&] { Archive(folder.write("zip", "PK\x03\x04 not an archive of ours")); });
  expect_error("must be a regular file, is a folder", [&] { Archive(folder.path()); });

  write_archive(folder.path() / "whole", small_model());
  const std::string whole = read_file(folder.path() / "whole");
  expect_error("cut: tensors must end with the file",
               [&] { Archive(folder.write("cut", whole.substr(0, whole.size() - 1))); });
  expect_error("long: tensors must end with the file", [&] { Archive(folder.write("long", whole + "x")); });
}

TEST_CASE("archive: a writer that fails leaves the old file and nothing else") {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "a.safetensors";
  write_archive(path, {{"old", zeros({1}, DType::f32)}});
  expect_error("tensor 'a': the name occurs twice", [&] {
    write_archive(path, {{"a", zeros({1}, DType::f32)}, {"a", zeros({1}, DType::f64)}});
  });
  expect_error("tensor 'a': must be defined", [&] { write_archive(path, {{"a", Tensor()}}); });

  rlimit previous{};
  ::getrlimit(RLIMIT_FSIZE, &previous);
  const rlimit limit{65536, previous.rlim_max};
  auto* const handler = std::signal(SIGXFSZ, SIG_IGN);
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
  const std::string message = message_of([&] { write_archive(path, {{"large", zeros({100'000}, DType::f32)}}); });
  ::setrlimit(RLIMIT_FSIZE, &previous);
  std::signal(SIGXFSZ, handler);
  CHECK(contains(message, path.string() + ": cannot write: File too large"));
  CHECK(Archive(path).contains("old"));
  CHECK(folder.count() == 1);
}

#include "core/archive_header.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <random>

#include "core/error.h"
#include "core/file.h"
#include "tests/support/expect_error.h"

using namespace lacuna;

namespace {

std::string length_prefix(uint64_t length) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(length >> (8 * i));
  return bytes;
}

/// A file with this header and `data_bytes` bytes of data.
std::string file_of(const std::string& json, size_t data_bytes = 0) {
  return length_prefix(json.size()) + json + std::string(data_bytes, '\x7f');
}

/// A header with the tensors `w` of this dtype, shape and offsets, as JSON texts.
std::string one_tensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"w":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
}

/// A header with tensors a, b, ... of u8 at these offsets.
std::string tensors_at(const std::vector<std::pair<int, int>>& offsets) {
  std::string json = "{";
  for (size_t i = 0; i < offsets.size(); ++i) {
    const auto& [begin, end] = offsets[i];
    json += concat(i ? "," : "", '"', static_cast<char>('a' + i), R"(":{"dtype":"U8","shape":[)", end - begin,
                   R"(],"data_offsets":[)", begin, ',', end, "]}");
  }
  return json + "}";
}

std::string repeated(const std::string& text, int count) {
  std::string result;
  for (int i = 0; i < count; ++i) result += text;
  return result;
}

ArchiveHeader parse(const std::string& bytes) { return parse_archive_header("x.safetensors", bytes); }

}  // namespace

TEST_CASE("archive header: what the format allows is read") {
  CHECK(parse(file_of("{}")).entries.empty());
  CHECK(parse(file_of("{}   ")).data_begin == 13);
  CHECK(parse(file_of(" \n\t\r{}")).entries.empty());  // other writers pad in front
  CHECK(parse(file_of(R"({"__metadata__":{}})")).metadata.empty());

  const ArchiveHeader header = parse(file_of(
      R"({"b":{"shape":[2,3],"data_offsets":[8,32],"dtype":"F32"},"__metadata__":{"k":"v","":"\u00e9\n\ud83d\ude00"},)"
      R"("a":{"dtype":"F64","shape":[],"data_offsets":[0,8]}, "none":{"dtype":"I64","shape":[0,281474976710655],)"
      R"("data_offsets":[8,8]}})",
      32));
  CHECK(header.metadata == Metadata{{"k", "v"}, {"", "\xc3\xa9\n\xf0\x9f\x98\x80"}});
  REQUIRE(header.entries.size() == 3);
  CHECK(header.entries.at("a").shape == Shape{});
  CHECK(header.entries.at("b").dtype == "F32");
  CHECK(header.entries.at("b").shape == Shape{2, 3});
  CHECK(header.entries.at("b").begin == 8);
  CHECK(header.entries.at("b").end == 32);
  CHECK(header.entries.at("none").shape.numel() == 0);
  CHECK(parse(file_of(tensors_at({{2, 5}, {0, 2}, {5, 5}, {0, 0}}), 5)).entries.size() == 4);  // any order
}

TEST_CASE("archive header: every dtype of the format is checked against its size") {
  const std::pair<const char*, int> bits[] = {
      {"BOOL", 8},        {"U8", 8},          {"I8", 8},      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8},
      {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
      {"I32", 32},        {"U32", 32},        {"F32", 32},    {"C64", 64},    {"F64", 64},    {"I64", 64},
      {"U64", 64},        {"F4", 4},          {"F6_E2M3", 6}, {"F6_E3M2", 6}};
  for (const auto& [name, size] : bits) {
    const int bytes = 4 * size / 8;
    const auto header = [&, n = name](int end) {
      return file_of(one_tensor(concat('"', n, '"'), "[4]", concat("[0,", end, "]")), static_cast<size_t>(end));
    };
    CHECK(parse(header(bytes)).entries.at("w").dtype == name);
    expect_error(
        concat("shape [4] of ", name, " needs ", bytes, " bytes, data_offsets [0, ", bytes + 1, "] hold ", bytes + 1),
        [&] { parse(header(bytes + 1)); });
  }
  expect_error("shape [3] of F4 must fill whole bytes, got 12 bits",
               [] { parse(file_of(one_tensor("\"F4\"", "[3]", "[0,1]"), 1)); });
}

TEST_CASE("archive header: hostile files are refused by name") {
  const std::string good = tensors_at({{0, 4}}), good_file = file_of(good, 4);
  const std::string f32 = "\"F32\"", top = "x.safetensors: ", w = "x.safetensors: tensor 'w': ";
  const struct {
    std::string bytes, message;
  } cases[] = {
      // Length of the header.
      {"", top + "must begin with 8 bytes of header length, has 0 bytes"},
      {"1234567", top + "must begin with 8 bytes of header length, has 7 bytes"},
      {length_prefix(0), top + "header must begin with '{', got ''"},
      {length_prefix(0) + "{}", top + "header must begin with '{', got ''"},
      {length_prefix(1) + "{}", top + "header must be strict JSON, at its byte"},
      {length_prefix(uint64_t{1} << 63) + "{}",
       top + "header must be at most 100000000 bytes, says it has 9223372036854775808"},
      {length_prefix(UINT64_MAX) + "{}",
       top + "header must be at most 100000000 bytes, says it has 18446744073709551615"},
      {length_prefix(100'000'001) + "{}", top + "header must be at most 100000000 bytes, says it has 100000001"},
      {length_prefix(100'000'000) + "{}", top + "header of 100000000 bytes does not fit the file of 10 bytes"},
      {length_prefix(3) + "{}", top + "header of 3 bytes does not fit the file of 10 bytes"},
      {length_prefix(good.size() + 4 + 1) + good_file.substr(8), " does not fit the file of "},
      {length_prefix(good.size() + 4) + good_file.substr(8), top + "header must be strict JSON"},
      {length_prefix(good.size() - 1) + good_file.substr(8), top + "header must be strict JSON"},
      {length_prefix(good.size() + 1) + good_file.substr(8), top + "header must be strict JSON"},
      // JSON.
      {file_of("   "), "header must begin with '{', got ''"},
      {file_of("[]"), "header must begin with '{', got '['"},
      {file_of("\xef\xbb\xbf{}"), "header must begin with '{', got '\\xef'"},
      {file_of("{} {}"), "header must be strict JSON, at its byte 4"},
      {file_of("{},"), "header must be strict JSON, at its byte 3"},
      {file_of(std::string("{}\0{", 4)), "header must be strict JSON, has a NUL at its byte 3"},
      {file_of("{'a':1}"), "header must be strict JSON, at its byte 2"},
      {file_of("{\"a\":{},}"), "tensor 'a': must have dtype, shape and data_offsets, lacks dtype"},
      {file_of("{\"__metadata__\":{},}"), "header must be strict JSON"},
      {file_of("{/**/}"), "header must be strict JSON"},
      {file_of("{\"a\tb\":{}}"), "header must be strict JSON"},
      {file_of(repeated("[", 100'000)), "header must begin with '{'"},
      {file_of(repeated("{\"a\":", 100'000)), "tensor 'a': keys must be dtype, shape and data_offsets, got 'a'"},
      {file_of(one_tensor(f32, repeated("[", 100'000), "[0,4]")),
       w + "shape must hold integers >= 0 written plainly, got a list"},
      {file_of(R"({"__metadata__":{"a":)" + repeated("[", 100'000)), "'a' is a list"},
      {file_of("{\"\xff\":{}}"), "header must be strict JSON, at its byte 3"},
      {file_of("{\"\xc0\xaf\":{}}"), "header must be strict JSON"},      // overlong
      {file_of("{\"\xed\xa0\x80\":{}}"), "header must be strict JSON"},  // a surrogate in UTF-8
      {file_of("{\"\xe2\x82"), "header must be strict JSON"},            // cut
      {file_of(R"({"\ud800":{}})"), "header must be strict JSON"},
      {file_of(R"({"\udc00\ud800":{}})"), "header must be strict JSON"},
      {file_of(R"({"__metadata__":{"a":"\ud83d"}})"), "header must be strict JSON"},
      // Names and keys.
      {file_of(R"({"a\u0000b":{}})"), "names must be at most 4096 bytes and hold no NUL, got 'a\\x00b'"},
      {file_of(R"({"__metadata__":{"\u0000":""}})"), "names must be at most 4096 bytes and hold no NUL"},
      {file_of("{\"" + std::string(4097, 'n') + "\":{}}"), "names must be at most 4096 bytes and hold no NUL"},
      {file_of(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}})"), "duplicate key 'a' in the header"},
      {file_of(R"({"__metadata__":{},"__metadata__":{}})"), "duplicate key '__metadata__' in the header"},
      {file_of(R"({"__metadata__":{"k":"1","\u006b":"2"}})"), "duplicate key 'k' in __metadata__"},
      {file_of(R"({"w":{"dtype":"U8","dtype":"U8"}})"), w + "duplicate key 'dtype'"},
      {file_of(R"({"w":{"shape":[1],"shape":[1]}})"), w + "duplicate key 'shape'"},
      {file_of(R"({"w":{"data_offsets":[0,1],"data_offsets":[0,1]}})"), w + "duplicate key 'data_offsets'"},
      {file_of(R"({"w":{"stride":[1]}})"), w + "keys must be dtype, shape and data_offsets, got 'stride'"},
      {file_of(R"({"w":{"dtype":"U8","shape":[1]}})", 1),
       w + "must have dtype, shape and data_offsets, lacks data_offsets"},
      {file_of(R"({"w":{"dtype":"U8","data_offsets":[0,1]}})", 1),
       w + "must have dtype, shape and data_offsets, lacks shape"},
      // Values of the wrong kind.
      {file_of(R"({"w":[]})"), "'w' in the header must be an object, got a list"},
      {file_of(R"({"w":null})"), "'w' in the header must be an object, got null"},
      {file_of(R"({"w":"F32"})"), "'w' in the header must be an object, got a string"},
      {file_of(R"({"__metadata__":"x"})"), "'__metadata__' in the header must be an object, got a string"},
      {file_of(R"({"__metadata__":null})"), "'__metadata__' in the header must be an object, got null"},
      {file_of(R"({"__metadata__":{"step":1}})"), "__metadata__ must map strings to strings, 'step' is a number"},
      {file_of(R"({"__metadata__":{"step":-1}})"), "'step' is a number with a sign"},
      {file_of(R"({"__metadata__":{"step":1.5}})"), "'step' is the number 1.5"},
      {file_of(R"({"__metadata__":{"on":true}})"), "'on' is a boolean"},
      {file_of(R"({"__metadata__":{"a":{}}})"), "'a' is an object"},
      {file_of(R"({"__metadata__":{"a":null}})"), "'a' is null"},
      {file_of(one_tensor("7", "[1]", "[0,4]"), 4), w + "dtype must be a string, got a number"},
      {file_of(one_tensor("[\"F32\"]", "[1]", "[0,4]"), 4), w + "dtype must be a string, got a list"},
      {file_of(one_tensor(f32, "1", "[0,4]"), 4), w + "shape must be a list of integers, got a number"},
      {file_of(one_tensor(f32, "{}", "[0,4]"), 4), w + "shape must be a list of integers, got an object"},
      {file_of(one_tensor(f32, "\"F32\"", "[0,4]"), 4), w + "shape must be a list of integers, got a string"},
      {file_of(one_tensor(f32, "[\"1\"]", "[0,4]"), 4),
       w + "shape must hold integers >= 0 written plainly, got a string"},
      {file_of(one_tensor(f32, "[null]", "[0,4]"), 4), w + "shape must hold integers >= 0 written plainly, got null"},
      // Numbers.
      {file_of(one_tensor(f32, "[-1]", "[0,4]"), 4),
       w + "shape must hold integers >= 0 written plainly, got a number with a sign"},
      {file_of(one_tensor(f32, "[-0]", "[0,0]")), "got a number with a sign"},
      {file_of(one_tensor(f32, "[1.5]", "[0,4]"), 4), "got the number 1.5"},
      {file_of(one_tensor(f32, "[1.0]", "[0,4]"), 4), "got the number 1.0"},
      {file_of(one_tensor(f32, "[1e3]", "[0,4000]"), 4000), "got the number 1e3"},
      {file_of(one_tensor(f32, "[01]", "[0,4]"), 4), "header must be strict JSON"},
      {file_of(one_tensor(f32, "[+1]", "[0,4]"), 4), "header must be strict JSON"},
      {file_of(one_tensor(f32, "[0x1]", "[0,4]"), 4), "header must be strict JSON"},
      {file_of(one_tensor(f32, "[NaN]", "[0,4]"), 4), "header must be strict JSON"},
      {file_of(one_tensor(f32, "[1e999]", "[0,4]"), 4), "header must be strict JSON"},
      {file_of(one_tensor(f32, "[0,281474976710656]", "[0,0]")),
       "shape must hold integers up to 281474976710655, got 281474976710656"},
      {file_of(one_tensor(f32, "[0,9223372036854775808]", "[0,0]")),
       "shape must hold integers up to 281474976710655, got 9223372036854775808"},
      {file_of(one_tensor(f32, "[18446744073709551616]", "[0,0]")), "got the number 18446744073709551616"},
      // Shapes and sizes.
      {file_of(one_tensor(f32, "[4294967296,4294967296]", "[0,0]")),
       w + "size of shape [4294967296, 4294967296] of F32 overflows 63 bits"},
      {file_of(one_tensor(f32, "[281474976710655,8192]", "[0,0]")), "overflows 63 bits"},
      {file_of(one_tensor(f32, "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4), w + "shape must hold at most 8 integers, got more"},
      {file_of(one_tensor(f32, "[2]", "[0,4]"), 4), w + "shape [2] of F32 needs 8 bytes, data_offsets [0, 4] hold 4"},
      {file_of(one_tensor("\"F33\"", "[1]", "[0,4]"), 4),
       w + "dtype must be one of the format's (F32, BF16, ...), got 'F33'"},
      {file_of(one_tensor("\"f32\"", "[1]", "[0,4]"), 4),
       "dtype must be one of the format's (F32, BF16, ...), got 'f32'"},
      {file_of(one_tensor("\"\"", "[1]", "[0,4]"), 4), "dtype must be one of the format's (F32, BF16, ...), got ''"},
      // Offsets and tiling.
      {file_of(one_tensor(f32, "[1]", "[]"), 4), w + "data_offsets must hold 2 integers, got 0"},
      {file_of(one_tensor(f32, "[1]", "[0]"), 4), w + "data_offsets must hold 2 integers, got 1"},
      {file_of(one_tensor(f32, "[1]", "[0,4,8]"), 4), w + "data_offsets must hold at most 2 integers, got more"},
      {file_of(one_tensor(f32, "[1]", "[4,0]"), 4), w + "data_offsets must not run backwards, got [4, 0]"},
      {file_of(one_tensor(f32, "[1]", "[-4,0]"), 4), w + "data_offsets must hold integers >= 0"},
      {file_of(one_tensor(f32, "[1]", "[1,5]"), 5),
       w + "data must begin at byte 0, where the tensor before ends, got 1 (hole)"},
      {file_of(tensors_at({{0, 4}, {2, 6}}), 6),
       "tensor 'b': data must begin at byte 4, where the tensor before ends, got 2 (overlap)"},
      {file_of(tensors_at({{0, 4}, {0, 4}}), 4),
       "data must begin at byte 4, where the tensor before ends, got 0 (overlap)"},
      {file_of(tensors_at({{0, 4}, {5, 6}}), 6),
       "tensor 'b': data must begin at byte 4, where the tensor before ends, got 5 (hole)"},
      {file_of(tensors_at({{0, 4}, {2, 2}}), 4), "got 2 (overlap)"},  // an empty tensor inside another
      {file_of(good, 5), "tensors must end with the file, 5 bytes after the header, end at 4 (trailing bytes)"},
      {file_of(good, 3), "tensors must end with the file, 3 bytes after the header, end at 4 (truncated)"},
      {file_of("{}", 1), "tensors must end with the file, 1 bytes after the header, end at 0 (trailing bytes)"},
      {file_of(one_tensor(f32, "[70368744177663]", "[0,281474976710652]"), 4), "end at 281474976710652 (truncated)"},
  };
  REQUIRE_NOTHROW(parse(good_file));
  for (const auto& [bytes, message] : cases) expect_error(message, [&, &b = bytes] { parse(b); });
}

TEST_CASE("archive header: no more tensors than a million") {
  std::string json = "{";
  for (int i = 0; i <= 1'000'000; ++i)
    json.append(i ? ",\"" : "\"")
        .append(std::to_string(i))
        .append(R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})");
  expect_error("must hold at most 1000000 tensors, has more", [&] { parse(file_of(json + "}")); });
}

TEST_CASE("archive header: the seeds of the fuzzer") {
  int read = 0, refused = 0;
  for (const auto& seed : std::filesystem::directory_iterator(LACUNA_SOURCE_DIR "/tests/fuzz/seeds/archive")) {
    try {
      parse(read_file(seed.path()));
      ++read;
    } catch (const Error&) {
      ++refused;
    }
  }
  CHECK(read >= 5);  // the valid ones
  CHECK(refused >= 20);
}

TEST_CASE("archive header: damaged files are read or refused, never anything else") {
  const std::string good = file_of(
      R"({"__metadata__":{"format":"pt"},"embedding":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
      R"("bias":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},)"
      R"("n":{"dtype":"I64","shape":[],"data_offsets":[32,40]}})",
      40);
  const auto survives = [](const std::string& bytes) {
    try {
      const ArchiveHeader header = parse(bytes);
      int64_t sum = 0;
      for (const auto& [name, entry] : header.entries) {
        REQUIRE(entry.begin >= 0);
        REQUIRE(entry.end >= entry.begin);
        sum += entry.end - entry.begin;
      }
      REQUIRE(header.data_begin + sum == static_cast<int64_t>(bytes.size()));
      return true;
    } catch (const Error& error) {
      REQUIRE(contains(error.what(), "x.safetensors: "));
      return false;
    }
  };
  CHECK(survives(good));
  for (size_t size = 0; size < good.size(); ++size) REQUIRE_FALSE(survives(good.substr(0, size)));
  for (size_t bit = 0; bit < 8 * good.size(); ++bit) {
    std::string damaged = good;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    survives(damaged);
  }
  std::mt19937 random(1);
  for (int i = 0; i < 10'000; ++i) {
    std::string damaged = good;
    const size_t edits = 1 + random() % 4;
    for (size_t k = 0; k < edits; ++k) {
      const size_t at = random() % damaged.size();
      switch (random() % 3) {
        case 0: damaged[at] = static_cast<char>(random()); break;
        case 1: damaged.erase(at, random() % 8); break;
        default: damaged.insert(at, 1, "{}[]\",:0123456789\\eE+-. "[random() % 24]); break;
      }
    }
    if (damaged.size() >= 8)
      damaged.replace(0, 8, length_prefix(damaged.find("}}") == std::string::npos ? 0 : damaged.find("}}") - 6));
    survives(damaged);
  }
}

TEST_CASE("archive header: what is composed is parsed again") {
  const DType dtypes[] = {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i64, DType::i32, DType::u8};
  const char* const pieces[] = {"a", ".", "0", "\"", "\\", "/", "\n", "\x01", "\x7f", "\xc3\xa9", "\xf0\x9f\x98\x80",
                                "{", " "};
  std::mt19937 random(1);
  const auto text = [&] {
    std::string result;
    for (size_t i = random() % 6; i > 0; --i) result += pieces[random() % std::size(pieces)];
    return result;
  };
  for (int round = 0; round < 300; ++round) {
    std::vector<NamedTensor> tensors;
    for (uint32_t i = random() % 6; i > 0; --i) {
      std::vector<int64_t> dims(random() % 4);
      for (int64_t& d : dims) d = random() % 5;
      tensors.push_back({text() + std::to_string(i), empty(Shape(dims), dtypes[random() % 7])});
    }
    Metadata metadata;
    for (uint32_t i = random() % 4; i > 0; --i) metadata[text()] = text();
    std::sort(tensors.begin(), tensors.end(), is_stored_before);

    std::string bytes = compose_archive_header("x", tensors, metadata);
    const size_t data_begin = bytes.size();
    REQUIRE(data_begin % 64 == 0);
    for (const NamedTensor& t : tensors) bytes.append(static_cast<size_t>(t.tensor.bytes()), 'x');
    const ArchiveHeader header = parse(bytes);
    REQUIRE(header.metadata == metadata);
    REQUIRE(header.data_begin == static_cast<int64_t>(data_begin));
    REQUIRE(header.entries.size() == tensors.size());
    int64_t begin = 0;
    for (const auto& [name, tensor] : tensors) {
      const Archive::Entry& entry = header.entries.at(name);
      REQUIRE(dtype_from_archive(entry.dtype) == tensor.dtype());
      REQUIRE(entry.shape == tensor.shape());
      REQUIRE(entry.begin == begin);
      begin += tensor.bytes();
      REQUIRE(entry.end == begin);
      REQUIRE(entry.begin % size_of(tensor.dtype()) == 0);  // the order keeps every tensor aligned
    }
  }
}

TEST_CASE("archive header: what the format forbids is not composed") {
  const Tensor t = zeros({1}, DType::f32), none = zeros({0}, DType::f32);
  const auto compose = [](const std::vector<NamedTensor>& tensors, const Metadata& metadata = {}) {
    compose_archive_header("x", tensors, metadata);
  };
  expect_error("x: tensor 'a': the name occurs twice", [&] { compose({{"a", t}, {"b", t}, {"a", t}}); });
  expect_error("x: tensor '__metadata__': the format reserves this name", [&] { compose({{"__metadata__", t}}); });
  expect_error("x: names must be at most 4096 bytes and hold no NUL, got 'a\\x00'", [&] {
    compose({{std::string("a\0", 2), t}});
  });
  expect_error("x: names must be at most 4096 bytes", [&] { compose({{std::string(4097, 'a'), t}}); });
  CHECK_NOTHROW(compose({{std::string(4096, 'a'), t}}));
  expect_error("x: the name of a tensor must be valid UTF-8, got '\\xff'", [&] { compose({{"\xff", t}}); });
  expect_error("x: tensor 'a': must be defined", [&] { compose({{"a", Tensor()}}); });
  expect_error("x: a value of __metadata__ must be valid UTF-8", [&] { compose({}, {{"a", "\xc0\x80"}}); });
  expect_error("x: a key of __metadata__ must be valid UTF-8", [&] { compose({}, {{"\xed\xa0\x80", ""}}); });
  expect_error("x: __metadata__: names must be", [&] { compose({}, {{std::string(1, '\0'), ""}}); });
  expect_error("x: tensor 'a': extents must be at most 281474976710655", [&] {
    compose({{"a", none.reshape({0, int64_t{1} << 48})}});
  });
  expect_error("x: header must be at most 100000000 bytes, needs 100000", [&] {
    compose({}, {{"a", std::string(100'000'000, 'a')}});
  });
  expect_error("x: must hold at most 1000000 tensors, got 1000001",
               [&] { compose(std::vector<NamedTensor>(1'000'001)); });
}

TEST_CASE("quoted: whatever a file holds, a message stays readable") {
  CHECK(concat(Quoted{"a.b"}) == "'a.b'");
  CHECK(concat(Quoted{"\x1b[31m\xc3\xa9\n"}) == "'\\x1b[31m\\xc3\\xa9\\x0a'");
  CHECK(concat(Quoted{std::string(1000, 'a')}) == "'" + std::string(160, 'a') + "...'");
}

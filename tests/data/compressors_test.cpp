#include "data/compressors.h"

#include <doctest/doctest.h>

#include <string>

#include "core/file.h"
#include "tests/data/messages.h"

namespace lacuna {
namespace {

std::string sample() { return read_file(LACUNA_SOURCE_DIR "/data/sample/wikipedia_sample.txt"); }

}  // namespace

// The sizes below are what `gzip -9 -n` 1.12 and `bzip2 -9` 1.0.8 write for the shipped sample and for its last 49,242
// bytes (the test split).
TEST_CASE("gzip_bits_per_byte: the gzip program's size to 0.5 %") {
  const std::string all = sample();
  CHECK(gzip_bits_per_byte(all) == doctest::Approx(8.0 * 349'455 / 984'836).epsilon(0.005));
  CHECK(gzip_bits_per_byte(std::string_view(all).substr(935'594)) ==
        doctest::Approx(8.0 * 20'319 / 49'242).epsilon(0.005));
}

TEST_CASE("bzip2_bits_per_byte: the bzip2 program's size exactly") {
  const std::string all = sample();
  CHECK(bzip2_bits_per_byte(all) == 8.0 * 276'135 / 984'836);
  CHECK(bzip2_bits_per_byte(std::string_view(all).substr(935'594)) == 8.0 * 18'631 / 49'242);
}

TEST_CASE("compressors: one byte costs a whole header, and input beyond one chunk is all counted") {
  CHECK(gzip_bits_per_byte("a") == 8.0 * (10 + 3 + 8));  // header, one deflate block, checksum and length
  CHECK(bzip2_bits_per_byte("a") == 8.0 * 37);

  std::string noise(3'000'000, '\0');  // incompressible
  uint32_t state = 1;
  for (char& c : noise) c = static_cast<char>((state = state * 1664525u + 1013904223u) >> 24);
  CHECK(gzip_bits_per_byte(noise) == doctest::Approx(8.0).epsilon(0.01));
  CHECK(bzip2_bits_per_byte(noise) == doctest::Approx(8.0).epsilon(0.01));
}

TEST_CASE("compressors: no bytes have no bits per byte") {
  CHECK(message_of<Error>([] { gzip_bits_per_byte(""); }) == "gzip_bits_per_byte: needs at least one byte");
  CHECK(message_of<Error>([] { bzip2_bits_per_byte(""); }) == "bzip2_bits_per_byte: needs at least one byte");
}

}  // namespace lacuna

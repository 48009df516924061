#include "core/dtype.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <utility>

#include "core/error.h"
#include "tests/support/expect_error.h"

using namespace lacuna;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <class T>
T from_bits(uint32_t bits) {
  T x;
  x.bits = static_cast<uint16_t>(bits);
  return x;
}

/// Checks rounding to nearest even between all neighbours a < b of a 16-bit type: below their middle gives a, above it
/// b, and the middle the one with an even last bit. `infinity` holds the bits of infinity.
template <class T>
void check_rounding(uint32_t infinity) {
  int64_t wrong = 0;
  for (uint32_t bits = 0; bits + 1 < infinity; ++bits) {
    const float a = from_bits<T>(bits), b = from_bits<T>(bits + 1);
    const float middle = static_cast<float>((double{a} + double{b}) / 2);  // exact: f32 has more bits
    const uint32_t even = bits % 2 == 0 ? bits : bits + 1;
    for (const uint32_t sign : {0u, 0x8000u}) {
      const float s = sign ? -1.0f : 1.0f;
      wrong += T(s * a).bits != (bits | sign);
      wrong += T(s * middle).bits != (even | sign);
      wrong += T(s * std::nextafter(middle, -kInfinity)).bits != (bits | sign);
      wrong += T(s * std::nextafter(middle, kInfinity)).bits != ((bits + 1) | sign);
    }
  }
  CHECK(wrong == 0);
}

/// Checks that every finite or infinite number survives the way to f32 and back, and that NaNs stay NaNs.
template <class T>
void check_round_trip(uint32_t infinity) {
  int64_t wrong = 0;
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const T x = from_bits<T>(bits);
    const bool is_nan = (bits & 0x7fff) > infinity;
    wrong += std::isnan(float(x)) != is_nan;
    wrong += std::signbit(float(x)) != (bits > 0x7fff);
    wrong += is_nan ? (T(float(x)).bits & 0x7fffu) <= infinity : T(float(x)).bits != bits;
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("f16: every value, by its definition") {
  int64_t wrong = 0;
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const uint32_t exponent = bits >> 10, fraction = bits & 0x3ff;
    const double value =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, static_cast<int>(exponent) - 25);
    wrong += double{from_bits<f16>(bits)} != value;
    wrong += double{from_bits<f16>(bits | 0x8000)} != -value;
  }
  CHECK(wrong == 0);
  CHECK(float(from_bits<f16>(0x7c00)) == kInfinity);
  CHECK(float(from_bits<f16>(0xfc00)) == -kInfinity);
}

TEST_CASE("f16 and bf16: all 65536 values survive the way to f32 and back") {
  check_round_trip<f16>(0x7c00);
  check_round_trip<bf16>(0x7f80);
}

TEST_CASE("f16 and bf16: f32 is rounded to nearest even between all neighbours") {
  check_rounding<f16>(0x7c00);
  check_rounding<bf16>(0x7f80);
}

TEST_CASE("f16 and bf16: overflow gives infinity, at half a unit beyond the largest number") {
  CHECK(f16(65504.0f).bits == 0x7bff);
  CHECK(f16(std::nextafter(65520.0f, 0.0f)).bits == 0x7bff);
  CHECK(f16(65520.0f).bits == 0x7c00);
  CHECK(f16(-65520.0f).bits == 0xfc00);
  CHECK(f16(std::numeric_limits<float>::max()).bits == 0x7c00);
  CHECK(f16(kInfinity).bits == 0x7c00);
  CHECK(f16(-kInfinity).bits == 0xfc00);

  CHECK(bf16(0x1.fep127f).bits == 0x7f7f);
  CHECK(bf16(0x1.fefffep127f).bits == 0x7f7f);
  CHECK(bf16(0x1.ffp127f).bits == 0x7f80);
  CHECK(bf16(-std::numeric_limits<float>::max()).bits == 0xff80);
  CHECK(bf16(kInfinity).bits == 0x7f80);
}

TEST_CASE("f16 and bf16: f32 numbers too small for them become zeros that keep their sign") {
  CHECK(f16(0x1p-25f).bits == 0);  // the middle between zero and the smallest number
  CHECK(f16(std::nextafter(0x1p-25f, 1.0f)).bits == 1);
  CHECK(f16(-0x1p-26f).bits == 0x8000);
  CHECK(bf16(-std::numeric_limits<float>::denorm_min()).bits == 0x8000);
}

TEST_CASE("f16 and bf16: a NaN stays a NaN, whatever its payload") {
  for (const uint32_t bits : {0x7f800001u, 0x7fc00000u, 0x7fffffffu, 0xff800001u, 0xffffffffu}) {
    const float nan = std::bit_cast<float>(bits);
    CHECK(std::isnan(float(f16(nan))));
    CHECK(std::isnan(float(bf16(nan))));
    CHECK(std::signbit(float(f16(nan))) == (bits > 0x7fffffffu));
    CHECK(std::signbit(float(bf16(nan))) == (bits > 0x7fffffffu));
  }
}

TEST_CASE("DType: names, sizes and kinds") {
  const std::pair<DType, const char*> all[] = {{DType::f64, "f64"}, {DType::f32, "f32"}, {DType::bf16, "bf16"},
                                               {DType::f16, "f16"}, {DType::i64, "i64"}, {DType::i32, "i32"},
                                               {DType::u8, "u8"}};
  for (const auto& [dtype, name] : all) {
    CHECK(name_of(dtype) == name);
    CHECK(parse_dtype(name) == dtype);
    CHECK(concat(dtype) == name);
    CHECK(is_floating(dtype) == (name[0] == 'f' || name[0] == 'b'));
  }
  CHECK(size_of(dtype_of<double>) == 8);
  CHECK(size_of(dtype_of<float>) == 4);
  CHECK(size_of(dtype_of<bf16>) == 2);
  CHECK(size_of(dtype_of<f16>) == 2);
  CHECK(size_of(dtype_of<int64_t>) == 8);
  CHECK(size_of(dtype_of<int32_t>) == 4);
  CHECK(size_of(dtype_of<uint8_t>) == 1);
  for (const char* name : {"", "F32", "float", "f32 ", "f8"})
    CHECK(contains(message_of<UsageError>([&] { parse_dtype(name); }), concat("got '", name, "'")));
}

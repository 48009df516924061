#include "core/dtype.h"

#include <array>
#include <cmath>
#include <ostream>
#include <utility>

#include "core/error.h"

namespace lacuna {
namespace {

constexpr std::array<std::pair<DType, std::string_view>, 7> kNames{{{DType::f64, "f64"},
                                                                    {DType::f32, "f32"},
                                                                    {DType::bf16, "bf16"},
                                                                    {DType::f16, "f16"},
                                                                    {DType::i64, "i64"},
                                                                    {DType::i32, "i32"},
                                                                    {DType::u8, "u8"}}};

}  // namespace

f16::f16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  const uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    bits = sign | 0x7e00u;  // NaN
  } else if (magnitude >= 0x477ff000u) {
    bits = sign | 0x7c00u;  // rounds to 65536 or more: infinity
  } else if (magnitude < 0x38800000u) {
    // Subnormal: a multiple of 2^-24. The addition rounds to nearest even in the place of that unit.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    bits = static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0.5f)));
  } else {
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    bits = static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
  }
}

f16::operator float() const {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu, fraction = bits & 0x3ffu;
  if (exponent == 0) {
    const float magnitude = std::ldexp(static_cast<float>(fraction), -24);
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  const uint32_t wide_exponent = exponent == 0x1fu ? 0xffu : exponent + 112u;
  return std::bit_cast<float>(sign | (wide_exponent << 23) | (fraction << 13));
}

int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64: return 8;
    case DType::f32:
    case DType::i32: return 4;
    case DType::bf16:
    case DType::f16: return 2;
    case DType::u8: return 1;
  }
  fail("size_of: unknown dtype ", static_cast<int>(dtype));
}

std::string_view name_of(DType dtype) {
  for (const auto& [value, name] : kNames)
    if (value == dtype) return name;
  fail("name_of: unknown dtype ", static_cast<int>(dtype));
}

DType parse_dtype(std::string_view name) {
  for (const auto& [value, known] : kNames)
    if (known == name) return value;
  throw UsageError(concat("dtype: must be one of f64, f32, bf16, f16, i64, i32, u8, got '", name, "'"));
}

bool is_floating(DType dtype) {
  return dtype == DType::f64 || dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16;
}

bool is_16_bit(DType dtype) { return dtype == DType::bf16 || dtype == DType::f16; }

DType accumulation_dtype(DType dtype) { return is_16_bit(dtype) ? DType::f32 : dtype; }

std::ostream& operator<<(std::ostream& out, DType dtype) { return out << name_of(dtype); }

}  // namespace lacuna

#pragma once
// Element types of tensors.

#include <bit>
#include <cstdint>
#include <iosfwd>
#include <string_view>
#include <type_traits>

namespace lacuna {

enum class DType : uint8_t { f64, f32, bf16, f16, i64, i32, u8 };

/// bfloat16 storage: the upper half of an f32. Converts to f32 exactly, from f32 rounding to nearest even.
struct bf16 {
  uint16_t bits = 0;
  bf16() = default;
  explicit bf16(float x) {  // without branches, so that loops vectorize
    const uint32_t u = std::bit_cast<uint32_t>(x), rounded = u + 0x7fffu + (u >> 16 & 1u);
    const bool is_nan = (u & 0x7fffffffu) > 0x7f800000u;
    bits = static_cast<uint16_t>((is_nan ? u | 0x400000u : rounded) >> 16);  // a NaN stays one, and quiet
  }
  operator float() const { return std::bit_cast<float>(uint32_t{bits} << 16); }
};

/// IEEE 754 binary16 storage. Converts to f32 exactly, from f32 rounding to nearest even (overflow gives infinity).
struct f16 {
  uint16_t bits = 0;
  f16() = default;
  explicit f16(float x);
  operator float() const;
};

/// Bytes of one element.
int64_t size_of(DType dtype);

/// "f32", "bf16", ...
std::string_view name_of(DType dtype);

/// The inverse of name_of; throws UsageError for a name that is none.
DType parse_dtype(std::string_view name);

bool is_floating(DType dtype);

/// Whether it is bf16 or f16: a type to store and move, in which nothing is summed.
bool is_16_bit(DType dtype);

/// The dtype of parameters, statistics, losses and sums beside activations of `dtype`: f32 for bf16 and f16, otherwise
/// the same.
DType accumulation_dtype(DType dtype);

std::ostream& operator<<(std::ostream& out, DType dtype);

template <class T>
inline constexpr DType dtype_of = [] {
  if constexpr (std::is_same_v<T, double>)
    return DType::f64;
  else if constexpr (std::is_same_v<T, float>)
    return DType::f32;
  else if constexpr (std::is_same_v<T, bf16>)
    return DType::bf16;
  else if constexpr (std::is_same_v<T, f16>)
    return DType::f16;
  else if constexpr (std::is_same_v<T, int64_t>)
    return DType::i64;
  else if constexpr (std::is_same_v<T, int32_t>)
    return DType::i32;
  else {
    static_assert(std::is_same_v<T, uint8_t>, "no DType for this element type");
    return DType::u8;
  }
}();

}  // namespace lacuna

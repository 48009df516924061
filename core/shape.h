#pragma once
// The extents of a tensor.

#include <array>
#include <cstdint>
#include <initializer_list>
#include <iosfwd>
#include <span>

namespace lacuna {

/// Extents of a row-major tensor, outermost first; at most kMaxRank of them, all 64-bit and >= 0.
/// Rank 0 is a scalar. Construction throws Error for a negative extent or a product that overflows 63 bits.
class Shape {
 public:
  static constexpr int64_t kMaxRank = 8;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : Shape(std::span<const int64_t>(dims.begin(), dims.size())) {}
  explicit Shape(std::span<const int64_t> dims);

  int64_t rank() const { return rank_; }
  int64_t numel() const { return numel_; }

  /// Extent of dimension `i`; negative `i` counts from the end. Throws Error when out of range.
  int64_t dim(int64_t i) const;

  std::span<const int64_t> dims() const { return {dims_.data(), static_cast<size_t>(rank_)}; }

  friend bool operator==(const Shape& a, const Shape& b);
  friend std::ostream& operator<<(std::ostream& out, const Shape& shape);  // [2, 3]

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int64_t rank_ = 0;
  int64_t numel_ = 1;
};

}  // namespace lacuna

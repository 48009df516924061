#include "core/shape.h"

#include <algorithm>
#include <ostream>

#include "core/error.h"

namespace lacuna {

Shape::Shape(std::span<const int64_t> dims) : rank_(static_cast<int64_t>(dims.size())) {
  check(rank_ <= kMaxRank, "Shape: at most ", kMaxRank, " dimensions, got ", rank_);
  std::copy(dims.begin(), dims.end(), dims_.begin());
  for (const int64_t d : dims) check(d >= 0, "Shape: extents must be >= 0, got ", *this);
  if (std::find(dims.begin(), dims.end(), 0) != dims.end()) {
    numel_ = 0;
    return;
  }
  for (const int64_t d : dims)
    check(!__builtin_mul_overflow(numel_, d, &numel_), "Shape: number of elements overflows 63 bits, got ", *this);
}

int64_t Shape::dim(int64_t i) const {
  const int64_t index = i < 0 ? i + rank_ : i;
  check(index >= 0 && index < rank_, "Shape: dimension ", i, " does not exist in ", *this);
  return dims_[static_cast<size_t>(index)];
}

bool operator==(const Shape& a, const Shape& b) { return std::ranges::equal(a.dims(), b.dims()); }

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << '[';
  for (int64_t i = 0; i < shape.rank_; ++i) out << (i ? ", " : "") << shape.dims_[static_cast<size_t>(i)];
  return out << ']';
}

}  // namespace lacuna

#include "ops/tokens.h"

#include <algorithm>
#include <string>

namespace lacuna {
namespace {

// The coordinates of element `index` in a tensor of `shape`: [2, 17].
std::string coordinates(const Shape& shape, int64_t index) {
  std::string text;
  for (int64_t i = shape.rank() - 1; i >= 0; --i) {
    text = std::to_string(index % shape.dim(i)) + (text.empty() ? "" : ", ") + text;
    index /= shape.dim(i);
  }
  return "[" + text + "]";
}

}  // namespace

void check_tokens(const char* op, const char* name, const Tensor& tokens, int64_t n_vocab) {
  check(tokens.dtype() == DType::u8, op, ": ", name, " must be u8, got ", tokens.dtype());
  if (tokens.device() != kCpu) return;
  const uint8_t* const begin = tokens.data<uint8_t>();
  const uint8_t* const end = begin + tokens.numel();
  const uint8_t* const bad = std::find_if(begin, end, [n_vocab](uint8_t t) { return t >= n_vocab; });
  check(bad == end, op, ": ", name, " must be below n_vocab ", n_vocab, ", got ", bad == end ? 0 : int{*bad}, " at ",
        bad == end ? std::string() : coordinates(tokens.shape(), bad - begin));
}

}  // namespace lacuna

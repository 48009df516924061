#include "ops/categorical/categorical.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/dispatch.h"
#include "ops/categorical/categorical_kernels.h"

namespace lacuna {
namespace cpu {
namespace {

template <class T>
uint8_t draw(const T* logits, int64_t n, double temperature, double u) {
  const T* const likeliest = std::max_element(logits, logits + n);
  if (temperature == 0.0) return static_cast<uint8_t>(likeliest - logits);

  std::vector<double> cumulative(static_cast<size_t>(n));
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i)
    cumulative[static_cast<size_t>(i)] = sum += std::exp((double{logits[i]} - double{*likeliest}) / temperature);
  const auto chosen = std::upper_bound(cumulative.begin(), cumulative.end() - 1, u * sum);
  return static_cast<uint8_t>(chosen - cumulative.begin());
}

}  // namespace

void draw_tokens(Stream, const Tensor& logits, double temperature, const Rng& rng, const Tensor& position,
                 const Tensor& prompt, const Tensor& tokens, const Tensor& previous, const Tensor& finite) {
  const int64_t t = position.data<int64_t>()[0] - 1, n = logits.dim(1);
  dispatch_f32_f64(logits.dtype(), "draw_tokens", [&]<class T>() {
    for (int64_t s = 0; s < logits.dim(0); ++s) {
      const T* const row = logits.data<T>() + s * n;
      if (!std::all_of(row, row + n, [](T x) { return std::isfinite(x); })) {
        finite.data<uint8_t>()[s] = 0;
        continue;
      }
      const uint8_t token =
          t < prompt.numel() ? prompt.data<uint8_t>()[t] : draw(row, n, temperature, rng.uniform({.sample = s}, t));
      previous.data<uint8_t>()[s] = tokens.data<uint8_t>()[s * tokens.dim(1) + t] = token;
    }
  });
}

}  // namespace cpu

void draw_tokens(const Tensor& logits, double temperature, const Rng& rng, const Tensor& position, const Tensor& prompt,
                 const Tensor& tokens, const Tensor& previous, const Tensor& finite) {
  constexpr int64_t kMostTokens = 256;  // of a byte
  check(logits.rank() == 2 && logits.dim(1) <= kMostTokens, "draw_tokens: logits must be [rows, n <= ", kMostTokens,
        "], got ", logits.shape());
  for (const Tensor& t : {position, prompt, tokens, previous, finite})
    check(t.device() == logits.device(), "draw_tokens: all tensors must be on ", logits.device(), " like logits, got ",
          t.device());
  LACUNA_DISPATCH(logits.device(), draw_tokens, logits, temperature, rng, position, prompt, tokens, previous, finite);
}

}  // namespace lacuna

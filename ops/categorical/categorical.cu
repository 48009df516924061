#include "core/cuda/kernel.h"
#include "ops/categorical/categorical_kernels.h"

namespace lacuna::gpu {
namespace {

constexpr int kTokens = 256;  // as many as there are tokens at most

struct Draw {
  const float* logits;  // [rows, n]
  const int64_t* position;
  const uint8_t* prompt;
  uint8_t *tokens, *previous, *finite;
  int64_t prompted, length;
  double temperature;
  Rng rng;
  int n;
};

// A token of each row; see categorical.h.
//   grid       a block for each row
//   thread     a logit; the first one then sums and chooses, in the order that the CPU has too
//   precision  f64
__global__ void draw_tokens_kernel(const __grid_constant__ Draw call) {
  LACUNA_SHARED(float, logits, [kTokens]);
  LACUNA_SHARED(double, weights, [kTokens]);
  const int i = static_cast<int>(threadIdx.x);
  const int64_t row = blockIdx.x, t = *call.position - 1;
  if (i < call.n) logits[i] = call.logits[row * call.n + i];
  __syncthreads();
  int likeliest = 0;
  bool finite = true;
  for (int j = 0; j < call.n; ++j) {
    if (logits[j] > logits[likeliest]) likeliest = j;
    finite = finite && fabsf(logits[j]) < INFINITY;  // false for NaN
  }
  if (i < call.n)
    weights[i] = exp((static_cast<double>(logits[i]) - static_cast<double>(logits[likeliest])) / call.temperature);
  __syncthreads();
  if (i > 0) return;

  if (!finite) call.finite[row] = 0;
  int token = likeliest;
  if (t < call.prompted) {
    token = call.prompt[t];
  } else if (call.temperature != 0.0) {
    double sum = 0.0;
    for (int j = 0; j < call.n; ++j) sum += weights[j];
    const double passes = call.rng.uniform({0, row, 0}, t) * sum;
    double cumulative = 0.0;
    for (token = 0; token < call.n - 1; ++token)
      if ((cumulative += weights[token]) > passes) break;
  }
  call.tokens[row * call.length + t] = call.previous[row] = static_cast<uint8_t>(token);
}

}  // namespace

void draw_tokens(Stream stream, const Tensor& logits, double temperature, const Rng& rng, const Tensor& position,
                 const Tensor& prompt, const Tensor& tokens, const Tensor& previous, const Tensor& finite) {
  if (logits.dim(0) == 0) return;
  const Draw call{data<float>(logits),
                  data<int64_t>(position),
                  prompt.numel() == 0 ? nullptr : data<uint8_t>(prompt),
                  data<uint8_t>(tokens),
                  data<uint8_t>(previous),
                  data<uint8_t>(finite),
                  prompt.numel(),
                  tokens.dim(1),
                  temperature,
                  rng,
                  static_cast<int>(logits.dim(1))};
  launch(stream, draw_tokens_kernel, dim3(grid_of(logits.dim(0), "draw_tokens")), dim3(kTokens), 0, call);
}

}  // namespace lacuna::gpu

// Sparse attention against the machine, against dense attention, and against masked attention through matrix products.
//
//   attention_benchmark [--n=3072] [--heads=4] [--width=64] [--seconds=0.5]
//
// For each pattern and length: best and median time of many short runs of forward, and of forward and backward, and the
// useful rate: 4 * width floating-point operations per (query, key) pair of the pattern forward, 14 * width forward and
// backward (2 + 5 products of 2 * width; recomputing the scores is counted, masked pairs are not). `of gemm` is that
// rate over the best f32 matrix product (oneDNN, 3072 x 1024 x 256) measured in the same run, taking turns with the
// attention; `x dense` is the best time of dense attention over that of the pattern. `masked gemm` is the rival: the
// whole n x n matrix of scores by one product per head, an additive mask, a softmax, a second product.

#include <dnnl.h>
#include <fmt/core.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "core/rng.h"
#include "ops/sparse_attention/sparse_attention.h"
#include "ops/sparse_attention/tiles_cpu.h"
#include "ops/sparse_attention/parts.h"

using namespace lacuna;

namespace {

struct Options {
  int64_t n = 0;  // 0: 512, 3072 and 12288
  int64_t heads = 4, width = 64;
  double seconds = 0.5;  // per measurement
  std::string pattern;   // only this one
};

struct Times {
  double best_ms = 0, median_ms = 0;
};

Times measure(const std::function<void()>& fn, double seconds) {
  using Clock = std::chrono::steady_clock;
  fn();
  std::vector<double> ms;
  const auto start = Clock::now();
  while (ms.size() < 3 || (std::chrono::duration<double>(Clock::now() - start).count() < seconds && ms.size() < 1000)) {
    const auto begin = Clock::now();
    fn();
    ms.push_back(std::chrono::duration<double, std::milli>(Clock::now() - begin).count());
  }
  std::sort(ms.begin(), ms.end());
  return {ms.front(), ms[ms.size() / 2]};
}

Tensor random_tensor(const Shape& shape, uint64_t seed) {
  const Tensor t = empty(shape, DType::f32);
  const Rng rng(seed, RandomPurpose::test);
  for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = static_cast<float>(rng.uniform({}, i) * 2 - 1);
  return t;
}

/// GFLOP/s of the machine's f32 matrix product.
double gemm_rate(double seconds) {
  constexpr int64_t kM = 3072, kN = 1024, kK = 256;
  const Tensor a = random_tensor({kM, kK}, 1), b = random_tensor({kK, kN}, 2), c = empty({kM, kN}, DType::f32);
  const Times times = measure(
      [&] {
        dnnl_sgemm('N', 'N', kM, kN, kK, 1.0f, a.data<float>(), kK, b.data<float>(), kN, 0.0f, c.data<float>(), kN);
      },
      seconds);
  return 2e-6 * kM * kN * kK / times.best_ms;
}

double pairs_of(const PatternUnion& patterns, int64_t n) {
  double pairs = 0;
  const std::vector<Part> parts = parts_of(patterns);
  for (int64_t i = 0; i < n; ++i) for_each_key(parts, i, [&](int64_t) { pairs += 1; });
  return pairs;
}

struct Inputs {
  Variable q, k, v;
  Tensor d_o;
  Inputs(int64_t n, const Options& options)
      : q(random_tensor({1, n, options.heads * options.width}, 1), true),
        k(random_tensor({1, n, options.heads * options.width}, 2), true),
        v(random_tensor({1, n, options.heads * options.width}, 3), true),
        d_o(random_tensor({1, n, options.heads * options.width}, 4)) {}
};

void print_row(int64_t n, const std::string& name, const char* pass, Times times, double flops, double gemm,
               double dense_ms) {
  const double rate = flops * 1e-6 / times.best_ms, median_rate = flops * 1e-6 / times.median_ms;
  fmt::print("{:>6} {:<42} {:<8} {:>9.2f} {:>9.2f} {:>8.1f} {:>8.1f} {:>7.0f}% {:>8.2f}\n", n, name, pass,
             times.best_ms, times.median_ms, rate, median_rate, 100 * rate / gemm, dense_ms / times.best_ms);
  std::fflush(stdout);
}

/// The whole masked matrix of scores of each head through matrix products, forward only.
Times masked_gemm(const Inputs& in, const PatternUnion& patterns, int64_t n, const Options& options) {
  const int64_t row = options.heads * options.width;
  const Tensor mask = empty({n, n}, DType::f32), s = empty({n, n}, DType::f32), o = empty({1, n, row}, DType::f32);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      mask.data<float>()[i * n + j] = attends(patterns, i, j) ? 0.0f : -std::numeric_limits<float>::infinity();
  return measure(
      [&] {
        for (int64_t h = 0; h < options.heads; ++h) {
          const int64_t at = h * options.width;
          dnnl_sgemm('N', 'T', n, n, options.width, 1.0f / std::sqrt(static_cast<float>(options.width)),
                     in.q.value().data<float>() + at, row, in.k.value().data<float>() + at, row, 0.0f, s.data<float>(),
                     n);
#pragma omp parallel for schedule(static)
          for (int64_t i = 0; i < n; ++i) {
            float* const x = s.data<float>() + i * n;
            const float* const m = mask.data<float>() + i * n;
            float top = -std::numeric_limits<float>::infinity(), sum = 0;
            for (int64_t j = 0; j < n; ++j) top = std::max(top, x[j] += m[j]);
            for (int64_t j = 0; j < n; ++j) sum += x[j] = std::exp(x[j] - top);
            for (int64_t j = 0; j < n; ++j) x[j] /= sum;
          }
          dnnl_sgemm('N', 'N', n, options.width, n, 1.0f, s.data<float>(), n, in.v.value().data<float>() + at, row,
                     0.0f, o.data<float>() + at, row);
        }
      },
      options.seconds);
}

void run_length(int64_t n, const Options& options) {
  const std::string l = n <= 3072 ? "96" : "128";
  std::vector<std::string> patterns{
      "dense",
      "local(window=" + l + ")",
      "column(stride=" + l + ")",
      "fixed_block(stride=" + l + ")",
      "fixed_summary(stride=" + l + ", c=32)",
      "fixed_block(stride=" + l + ") + fixed_summary(stride=" + l + ", c=32)",
      "local(window=" + l + ") + column(stride=" + l + ")",
  };
  if (!options.pattern.empty()) patterns = {options.pattern};
  const Inputs in(n, options);
  double dense_forward = 0, dense_both = 0;
  for (const std::string& text : patterns) {
    const LayerPattern layer = parse_attention(text).layers[0];
    const double pairs = pairs_of(layer.for_head(0), n) * static_cast<double>(options.heads * options.width);
    const auto forward = [&] {
      const GradientMode off(false);
      sparse_attention(in.q, in.k, in.v, layer, options.heads);
    };
    const auto both = [&] {
      backward(sparse_attention(in.q, in.k, in.v, layer, options.heads), in.d_o);
      for (const Variable& x : {in.q, in.k, in.v}) x.clear_grad();
    };
    const double gemm_before = gemm_rate(options.seconds / 4);
    const Times forward_ms = measure(forward, options.seconds), both_ms = measure(both, options.seconds);
    const double gemm = std::max(gemm_before, gemm_rate(options.seconds / 4));
    if (text == "dense") dense_forward = forward_ms.best_ms, dense_both = both_ms.best_ms;
    std::string name = text;
    for (size_t at; (at = name.find("stride=")) != std::string::npos;) name.erase(at, 7);
    for (size_t at; (at = name.find("window=")) != std::string::npos;) name.erase(at, 7);
    print_row(n, name, "fwd", forward_ms, 4 * pairs, gemm, dense_forward);
    print_row(n, name, "fwd+bwd", both_ms, 14 * pairs, gemm, dense_both);
  }
  if (n <= 4096 && options.pattern.empty())
    print_row(n, "masked gemm, dense causal", "fwd", masked_gemm(in, {Dense{}}, n, options),
              4 * pairs_of({Dense{}}, n) * static_cast<double>(options.heads * options.width),
              gemm_rate(options.seconds / 4), dense_forward);
}

double value_of(const std::string& argument, const std::string& name) {
  return argument.rfind(name + "=", 0) == 0 ? std::stod(argument.substr(name.size() + 1)) : -1;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (const double x = value_of(argument, "--n"); x > 0)
      options.n = static_cast<int64_t>(x);
    else if (const double x = value_of(argument, "--heads"); x > 0)
      options.heads = static_cast<int64_t>(x);
    else if (const double x = value_of(argument, "--width"); x > 0)
      options.width = static_cast<int64_t>(x);
    else if (const double x = value_of(argument, "--seconds"); x > 0)
      options.seconds = x;
    else if (argument.rfind("--pattern=", 0) == 0)
      options.pattern = argument.substr(10);
    else {
      fmt::print(stderr, "usage: attention_benchmark [--n=N] [--heads=H] [--width=D] [--seconds=S]\n");
      return 2;
    }
  }
  fmt::print("f32, batch 1, {} heads of width {}, {} threads, instruction set {}, sgemm {:.0f} GFLOP/s\n",
             options.heads, options.width, omp_get_max_threads(), cpu::tile_target(), gemm_rate(options.seconds));
  fmt::print("{:>6} {:<42} {:<8} {:>9} {:>9} {:>8} {:>8} {:>8} {:>8}\n", "n", "pattern", "pass", "best ms", "median ms",
             "GFLOP/s", "median", "of gemm", "x dense");
  for (const int64_t n : {int64_t{512}, int64_t{3072}, int64_t{12288}})
    if (options.n == 0 || options.n == n) run_length(n, options);
  if (options.n != 0 && options.n != 512 && options.n != 3072 && options.n != 12288) run_length(options.n, options);
  return 0;
}

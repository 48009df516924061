// From which length on each attention pattern is faster than dense attention: forward, backward and a training step.
//
//   crossover_benchmark [--most=4096] [--seconds=0.15]
//
// Prints the tables of docs/crossover.md: for n = 64, 128, ..., up to `most`, how many times faster than dense each
// pattern is, and the first of these n from which on it is always faster. Its stride l is the square root of n, rounded.
// Attention: f32, batch 1, 4 heads of 64. The training step is of a model of 2 layers, d_model 256, batch 1: forward,
// backward and Adam. Each time is the best of many runs; `seconds` is for each measurement.

#include <fmt/core.h>
#include <omp.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "benchmarks/timing.h"
#include "core/rng.h"
#include "models/sparse_transformer.h"
#include "ops/sparse_attention/sparse_attention.h"
#include "ops/sparse_attention/tiles_cpu.h"
#include "optim/adam.h"

using namespace lacuna;

namespace {

constexpr int64_t kHeads = 4, kWidth = 64, kRow = kHeads * kWidth;

/// Patterns for stride l as parse_attention reads them, L, C and W standing for l, l / 8 and 4 l.
const std::vector<std::string> kPatterns{
    "local(window=L)",
    "local(window=128)",
    "dilated(window=L, dilation=8)",
    "column(stride=L)",
    "local(window=L) + column(stride=L)",
    "local(window=L) | column(stride=L)",
    "column(stride=L), local(window=L), local(window=L), local(window=L)",
    "fixed_block(stride=L)",
    "fixed_summary(stride=L, c=C)",
    "fixed_block(stride=L) + fixed_summary(stride=L, c=C)",
    "fixed_block(stride=L) | fixed_summary(stride=L, c=C)",
    "local(window=L) + global(n=C)",
    "longnet(w=L:W, r=1:4)"};

AttentionPattern pattern_of(const std::string& text, int64_t l) {
  std::string written;
  for (size_t at = 0; at < text.size(); ++at) {
    const bool letter = at > 0 && (text[at - 1] == '=' || text[at - 1] == ':');
    if (letter && text[at] == 'L')
      written += std::to_string(l);
    else if (letter && text[at] == 'C')
      written += std::to_string(std::max<int64_t>(1, l / 8));
    else if (letter && text[at] == 'W')
      written += std::to_string(4 * l);
    else
      written += text[at];
  }
  return parse_attention(written);
}

Tensor random_tensor(const Shape& shape, int64_t id) {
  const Tensor x = empty(shape, DType::f32);
  const Rng rng(1, RandomPurpose::test);
  for (int64_t e = 0; e < x.numel(); ++e) x.data<float>()[e] = static_cast<float>(2 * rng.uniform({.op = id}, e) - 1);
  return x;
}

constexpr std::array<const char*, 3> kPasses{"forward", "backward", "training step"};
using Seconds = std::array<double, 3>;

/// Best times of forward and of backward, measured in turn; of a layer.
std::pair<double, double> time_attention(const LayerPattern& layer, int64_t n, double seconds) {
  const Variable q(random_tensor({1, n, kRow}, 0), true), k(random_tensor({1, n, kRow}, 1), true),
      v(random_tensor({1, n, kRow}, 2), true);
  const Tensor d_o = random_tensor({1, n, kRow}, 3);
  double forward_s = std::numeric_limits<double>::infinity(), backward_s = forward_s;
  time_runs(
      [&] {
        const auto now = [] { return std::chrono::steady_clock::now(); };
        const auto since = [&](auto begin) { return std::chrono::duration<double>(now() - begin).count(); };
        auto begin = now();
        const Variable o = sparse_attention(q, k, v, layer, kHeads);
        forward_s = std::min(forward_s, since(begin));
        begin = now();
        backward(o, d_o);
        backward_s = std::min(backward_s, since(begin));
        for (const Variable& x : {q, k, v}) x.clear_grad();
      },
      seconds);
  return {forward_s, backward_s};
}

double time_step(const AttentionPattern& attention, int64_t n, double seconds) {
  ModelConfig config;
  config.n_ctx = n;
  config.d_model = kRow;
  config.n_layers = std::max<int64_t>(2, static_cast<int64_t>(attention.layers.size()));
  config.n_heads = kHeads;
  config.position_extents = {n};
  config.attention = attention;
  SparseTransformer model(config, /*seed=*/1);
  Adam adam(model.parameters(), {});
  Tensor tokens = empty({1, n}, DType::u8);
  for (int64_t i = 0; i < n; ++i) tokens.data<uint8_t>()[i] = static_cast<uint8_t>(i * 37 % 256);
  int64_t step = 0;
  const Timing times = time_runs(
      [&] {
        model.parameters().clear_gradients();
        const Variable loss = model.loss(tokens, {.training = true, .seed = 1, .step = step++, .first_sample = 0});
        backward(loss, full({}, DType::f32, 1.0));
        adam.step(1e-4, 1.0);
      },
      seconds);
  return times.best_s / static_cast<double>(config.n_layers);
}

/// Of a mean layer.
Seconds measure(const AttentionPattern& attention, int64_t n, double seconds) {
  Seconds mean{};
  const double share = 1.0 / static_cast<double>(attention.layers.size());
  for (size_t layer = 0; layer < attention.layers.size(); ++layer) {
    if (layer > 1) continue;  // interleaved 1:3: layers 1, 2 and 3 are alike
    const double layers = attention.layers.size() == 4 && layer == 1 ? 3 : 1;
    const auto [forward_s, backward_s] = time_attention(attention.layers[layer], n, seconds);
    mean[0] += layers * share * forward_s;
    mean[1] += layers * share * backward_s;
  }
  mean[2] = time_step(attention, n, seconds);
  return mean;
}

/// `text` for a cell of a table, in which a bar would end it.
std::string escaped(std::string text) {
  for (size_t at = 0; (at = text.find('|', at)) != std::string::npos; at += 2) text.insert(at, 1, '\\');
  return text;
}

void run(int64_t most, double seconds) {
  std::vector<int64_t> lengths;
  for (int64_t n = 64; n <= most; n *= 2) lengths.push_back(n);
  std::vector<Seconds> dense;
  std::vector<std::vector<Seconds>> times(kPatterns.size());  // of each length
  for (const int64_t n : lengths) {
    const int64_t l = std::llround(std::sqrt(static_cast<double>(n)));
    dense.push_back(measure(parse_attention("dense"), n, seconds));
    for (size_t p = 0; p < kPatterns.size(); ++p) times[p].push_back(measure(pattern_of(kPatterns[p], l), n, seconds));
    fmt::print(stderr, "n = {}\n", n);
  }
  fmt::print("f32, {} threads, instruction set {}\n\n", omp_get_max_threads(), cpu::tile_target());
  fmt::print("Faster than dense from n = ... on:\n\n| pattern (l = sqrt(n), c = l / 8) | {} | {} | {} |\n| --- | ---: | "
             "---: | ---: |\n",
             kPasses[0], kPasses[1], kPasses[2]);
  for (size_t p = 0; p < kPatterns.size(); ++p) {
    fmt::print("| `{}` |", escaped(kPatterns[p]));
    for (size_t pass = 0; pass < 3; ++pass) {
      size_t first = lengths.size();
      while (first > 0 && times[p][first - 1][pass] < dense[first - 1][pass]) --first;
      fmt::print(" {} |", first < lengths.size() ? std::to_string(lengths[first]) : "never up to " + std::to_string(most));
    }
    fmt::print("\n");
  }
  for (size_t pass = 0; pass < 3; ++pass) {
    fmt::print("\n{}: times as fast as dense, whose milliseconds are in the first row{}:\n\n| n |", kPasses[pass],
               pass == 2 ? ", for each layer" : "");
    for (const int64_t n : lengths) fmt::print(" {} |", n);
    fmt::print("\n| --- |");
    for (size_t x = 0; x < lengths.size(); ++x) fmt::print(" ---: |");
    fmt::print("\n| `dense`, ms |");
    for (const Seconds& s : dense) fmt::print(" {:.3g} |", 1e3 * s[pass]);
    for (size_t p = 0; p < kPatterns.size(); ++p) {
      fmt::print("\n| `{}` |", escaped(kPatterns[p]));
      for (size_t x = 0; x < lengths.size(); ++x) fmt::print(" {:.2f} |", dense[x][pass] / times[p][x][pass]);
    }
    fmt::print("\n");
  }
}

}  // namespace

int main(int argc, char** argv) {
  int64_t most = 4096;
  double seconds = 0.15;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.starts_with("--most=") && std::atoll(argument.c_str() + 7) >= 64)
      most = std::atoll(argument.c_str() + 7);
    else if (argument.starts_with("--seconds=") && std::atof(argument.c_str() + 10) > 0)
      seconds = std::atof(argument.c_str() + 10);
    else {
      fmt::print(stderr, "usage: crossover_benchmark [--most=N, at least 64] [--seconds=S]\n");
      return 2;
    }
  }
  run(most, seconds);
  return 0;
}

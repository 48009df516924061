// Sparse attention against the machine, against dense attention, and against what else computes it on a CPU.
//
//   attention_benchmark [--n=3072] [--pattern=TEXT] [--heads=4] [--width=64] [--seconds=0.5] [--python=python3]
//   attention_benchmark --long
//
// For each pattern and length: best and median time of many short runs of forward, and of forward and backward, and the
// useful rate: 4 * width floating-point operations per (query, key) pair of the pattern forward, 14 * width forward and
// backward (2 + 5 products of 2 * width; recomputing the scores is counted, masked pairs are not). `of gemm` is that
// rate over the best f32 matrix product (oneDNN, 3072 x 1024 x 256) measured in the same run, taking turns with the
// attention; `x dense` is the best time of dense attention over that of the pattern. A pattern of several layers
// (`,`) shows the mean of its layers.
//
// The rivals: `masked gemm` is the whole n x n matrix of scores by one product per head, an additive mask, a softmax,
// and products for the rest; PyTorch's kernels are timed by benchmarks/pytorch/attention.py, if python3 has PyTorch.
//
// --long: forward and backward of merged strided attention, one head of 64, stride sqrt(n), at n = 65536, 262144 and
// 1048576: how time grows, and memory.

#include <dnnl.h>
#include <fmt/core.h>
#include <omp.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "benchmarks/timing.h"
#include "core/allocator.h"
#include "core/rng.h"
#include "ops/sparse_attention/parts.h"
#include "ops/sparse_attention/sparse_attention.h"
#include "ops/sparse_attention/tiles_cpu.h"

using namespace lacuna;

namespace {

struct Options {
  int64_t n = 0;  // 0: 512, 1024, 3072 and 12288
  int64_t heads = 4, width = 64;
  double seconds = 0.5;  // per measurement
  std::string pattern;   // only this one
  std::string python = "python3";
};

Tensor random_tensor(const Shape& shape, uint64_t seed) {
  const Tensor t = empty(shape, DType::f32);
  const Rng rng(seed, RandomPurpose::test);
  float* const x = t.data<float>();
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < t.numel(); ++i) x[i] = static_cast<float>(rng.uniform({}, i) * 2 - 1);
  return t;
}

/// GFLOP/s of the machine's f32 matrix product.
double gemm_rate(double seconds) {
  constexpr int64_t kM = 3072, kN = 1024, kK = 256;
  static const Tensor a = random_tensor({kM, kK}, 1), b = random_tensor({kK, kN}, 2), c = empty({kM, kN}, DType::f32);
  const Timing times = time_runs(
      [&] {
        dnnl_sgemm('N', 'N', kM, kN, kK, 1.0f, a.data<float>(), kK, b.data<float>(), kN, 0.0f, c.data<float>(), kN);
      },
      seconds);
  return 2e-9 * kM * kN * kK / times.best_s;
}

double pairs_of(const PatternUnion& patterns, int64_t n) {
  double pairs = 0;
  for (const Part& part : parts_of(patterns))
    for (int64_t i = 0; i < n; ++i) {
      const int64_t group = i % part.view.residues;
      const Range keys = part.keys_of(group, i);
      pairs += static_cast<double>(keys.end - keys.begin);
      if (part.scattered_before.empty()) continue;
      for (int64_t t = keys.begin; t < keys.end; ++t) pairs -= part.skips(i, part.view.keys(group).position(t));
    }
  return pairs;
}

struct Inputs {
  Variable q, k, v;
  Tensor d_o;
  Inputs(int64_t n, int64_t row)
      : q(random_tensor({1, n, row}, 1), true),
        k(random_tensor({1, n, row}, 2), true),
        v(random_tensor({1, n, row}, 3), true),
        d_o(random_tensor({1, n, row}, 4)) {}

  void forward(const LayerPattern& layer, int64_t heads) const {
    const GradientMode off(false);
    sparse_attention(q, k, v, layer, heads);
  }
  void forward_and_backward(const LayerPattern& layer, int64_t heads) const {
    backward(sparse_attention(q, k, v, layer, heads), d_o);
    for (const Variable& x : {q, k, v}) x.clear_grad();
  }
};

/// Of one layer, or the mean of several. All of forward, then of forward and backward.
struct Measured {
  double pairs = 0, gemm = 0;
  std::array<Timing, 2> times;
};

constexpr std::array<const char*, 2> kPasses{"fwd", "fwd+bwd"};
constexpr std::array<double, 2> kFlops{4, 14};  // per pair and element of a head's width

void print_head() {
  fmt::print("{:>6} {:<44} {:<8} {:>9} {:>9} {:>8} {:>8} {:>8} {:>8}\n", "n", "pattern", "pass", "best ms", "median ms",
             "GFLOP/s", "median", "of gemm", "x dense");
}

/// The rows of a pattern. `flops`: of forward, or 0 to leave out the rates.
void print_row(int64_t n, const std::string& name, const char* pass, Timing times, double flops, double gemm,
               double dense_s) {
  fmt::print("{:>6} {:<44} {:<8} {:>9.2f} {:>9.2f} {:>8.1f} {:>8.1f} {:>7.0f}% {:>8}\n", n, name, pass,
             times.best_s * 1e3, times.median_s * 1e3, flops * 1e-9 / times.best_s, flops * 1e-9 / times.median_s,
             flops * 1e-7 / times.best_s / gemm, dense_s > 0 ? fmt::format("{:.2f}", dense_s / times.best_s) : "-");
  std::fflush(stdout);
}

Measured measure_layer(const Inputs& in, const LayerPattern& layer, int64_t n, const Options& options) {
  constexpr size_t kRounds = 5;  // of taking turns, so that a slow moment of the machine falls on all
  const double seconds = options.seconds / kRounds;
  Measured m;
  m.pairs = pairs_of(layer.for_head(0), n);
  std::array<std::array<double, kRounds>, 2> best, median;
  for (size_t round = 0; round < kRounds; ++round) {
    m.gemm = std::max(m.gemm, gemm_rate(seconds / 2));
    for (const bool both : {false, true}) {
      const Timing times = time_runs(
          [&] { both ? in.forward_and_backward(layer, options.heads) : in.forward(layer, options.heads); }, seconds, 1);
      best[both][round] = times.best_s;
      median[both][round] = times.median_s;
    }
  }
  for (const bool both : {false, true}) {
    std::sort(median[both].begin(), median[both].end());
    m.times[both] = {*std::min_element(best[both].begin(), best[both].end()), median[both][kRounds / 2]};
  }
  return m;
}

/// The whole masked matrix of scores of each head through matrix products; backward keeps the weights of forward.
Measured masked_gemm(const Inputs& in, const PatternUnion& patterns, int64_t n, const Options& options) {
  const int64_t d = options.width, row = options.heads * d;
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  const Tensor mask = empty({n, n}, DType::f32), p = empty({n, n}, DType::f32), ds = empty({n, n}, DType::f32);
  const Tensor o = empty({n, row}, DType::f32), dq = empty_like(o), dk = empty_like(o), dv = empty_like(o);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      mask.data<float>()[i * n + j] = attends(patterns, i, j) ? 0.0f : -std::numeric_limits<float>::infinity();

  const auto forward = [&](int64_t at) {
    dnnl_sgemm('N', 'T', n, n, d, scale, in.q.value().data<float>() + at, row, in.k.value().data<float>() + at, row,
               0.0f, p.data<float>(), n);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; ++i) {
      float* const x = p.data<float>() + i * n;
      const float* const m = mask.data<float>() + i * n;
      float top = -std::numeric_limits<float>::infinity(), sum = 0;
      for (int64_t j = 0; j < n; ++j) top = std::max(top, x[j] += m[j]);
      for (int64_t j = 0; j < n; ++j) sum += x[j] = std::exp(x[j] - top);
      for (int64_t j = 0; j < n; ++j) x[j] /= sum;
    }
    dnnl_sgemm('N', 'N', n, d, n, 1.0f, p.data<float>(), n, in.v.value().data<float>() + at, row, 0.0f,
               o.data<float>() + at, row);
  };
  const auto backward = [&](int64_t at) {
    const float* const g = in.d_o.data<float>() + at;
    dnnl_sgemm('T', 'N', n, d, n, 1.0f, p.data<float>(), n, g, row, 0.0f, dv.data<float>() + at, row);
    dnnl_sgemm('N', 'T', n, n, d, 1.0f, g, row, in.v.value().data<float>() + at, row, 0.0f, ds.data<float>(), n);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; ++i) {
      float delta = 0;
      for (int64_t c = 0; c < d; ++c) delta += g[i * row + c] * o.data<float>()[i * row + at + c];
      for (int64_t j = i * n; j < (i + 1) * n; ++j)
        ds.data<float>()[j] = p.data<float>()[j] * (ds.data<float>()[j] - delta);
    }
    dnnl_sgemm('N', 'N', n, d, n, scale, ds.data<float>(), n, in.k.value().data<float>() + at, row, 0.0f,
               dq.data<float>() + at, row);
    dnnl_sgemm('T', 'N', n, d, n, scale, ds.data<float>(), n, in.q.value().data<float>() + at, row, 0.0f,
               dk.data<float>() + at, row);
  };
  Measured m;
  m.pairs = pairs_of(patterns, n);
  m.gemm = gemm_rate(options.seconds / 4);
  for (const bool both : {false, true})
    m.times[both] = time_runs(
        [&] {
          for (int64_t h = 0; h < options.heads; ++h) {
            forward(h * d);
            if (both) backward(h * d);
          }
        },
        options.seconds);
  return m;
}

/// PyTorch's kernels on these patterns, by a Python program: one line `pattern <tab> kernel <tab> pass <tab> best ms
/// <tab> median ms` for each time.
void print_pytorch(int64_t n, const std::vector<std::string>& patterns, const std::map<std::string, Measured>& ours,
                   const Options& options) {
  std::string command =
      fmt::format("{} {}/benchmarks/pytorch/attention.py --n {} --heads {} --width {} --seconds {}", options.python,
                  LACUNA_SOURCE_FOLDER, n, options.heads, options.width, options.seconds);
  for (const std::string& pattern : patterns) command += fmt::format(" --pattern '{}'", pattern);
  bool any = false;
  if (std::FILE* const pipe = popen((command + " 2>/dev/null").c_str(), "r")) {
    std::array<char, 1024> line;
    while (std::fgets(line.data(), static_cast<int>(line.size()), pipe) != nullptr) {
      std::array<char, 256> pattern, kernel, pass;
      Timing times;
      if (std::sscanf(line.data(), "%255[^\t]\t%255[^\t]\t%255[^\t]\t%lf\t%lf", pattern.data(), kernel.data(),
                      pass.data(), &times.best_s, &times.median_s) != 5)
        continue;
      times.best_s *= 1e-3, times.median_s *= 1e-3;
      any = true;
      const Measured& m = ours.at(pattern.data());
      const bool both = std::string(pass.data()) == kPasses[1];
      print_row(n, fmt::format("{}: {}", kernel.data(), pattern.data()), pass.data(), times,
                kFlops[both] * m.pairs * static_cast<double>(options.heads * options.width), m.gemm,
                ours.count("dense") ? ours.at("dense").times[both].best_s : 0);
    }
    pclose(pipe);
  }
  if (!any) fmt::print("{:>6} {:<44} absent\n", n, "PyTorch");
}

std::string short_name(std::string text) {
  for (const std::string field : {"stride=", "window="})
    for (size_t at; (at = text.find(field)) != std::string::npos;) text.erase(at, field.size());
  return text;
}

void run_length(int64_t n, const Options& options) {
  const std::string l = n <= 1024 ? "32" : n <= 3072 ? "96" : "128";
  const std::string local = "local(window=" + l + ")", column = "column(stride=" + l + ")",
                    block = "fixed_block(stride=" + l + ")", summary = "fixed_summary(stride=" + l;
  const std::string c = n <= 1024 ? "8" : "32";
  const std::string fixed = block + " + " + summary + ", c=" + c + ")", merged = local + " + " + column;
  std::vector<std::string> patterns{"dense",
                                    local,
                                    column,
                                    column + ", " + local + ", " + local + ", " + local,
                                    merged,
                                    block,
                                    summary + ", c=" + c + ")",
                                    fixed};
  if (n == 3072) patterns.insert(patterns.begin() + 3, "column(stride=128)");  // 24 rows; above 32
  if (n > 3072) patterns.push_back(block + " + " + summary + ", c=8)");
  if (!options.pattern.empty()) patterns = {options.pattern};

  const Inputs in(n, options.heads * options.width);
  std::map<std::string, Measured> of_layer, of_pattern;
  for (const std::string& text : patterns) {
    const AttentionPattern attention = parse_attention(text);
    const double layers = static_cast<double>(attention.layers.size());
    Measured mean;
    for (const LayerPattern& layer : attention.layers) {
      const auto [found, missing] = of_layer.try_emplace(to_string(AttentionPattern{{layer}}));
      if (missing) found->second = measure_layer(in, layer, n, options);
      const Measured& m = found->second;
      mean.gemm = std::max(mean.gemm, m.gemm);
      mean.pairs += m.pairs / layers;
      for (size_t pass = 0; pass < 2; ++pass) {
        mean.times[pass].best_s += m.times[pass].best_s / layers;
        mean.times[pass].median_s += m.times[pass].median_s / layers;
      }
    }
    of_pattern[text] = mean;
    for (size_t pass = 0; pass < 2; ++pass)
      print_row(n, attention.layers.size() == 4 ? "strided, column and local 1:3" : short_name(text), kPasses[pass],
                mean.times[pass], kFlops[pass] * mean.pairs * static_cast<double>(options.heads * options.width),
                mean.gemm, of_pattern.count("dense") ? of_pattern["dense"].times[pass].best_s : 0);
  }
  if (!options.pattern.empty()) return;

  if (n <= 4096) {
    const Measured m = masked_gemm(in, {Dense{}}, n, options);
    for (size_t pass = 0; pass < 2; ++pass)
      print_row(n, "masked gemm: dense", kPasses[pass], m.times[pass],
                kFlops[pass] * m.pairs * static_cast<double>(options.heads * options.width), m.gemm,
                of_pattern["dense"].times[pass].best_s);
  }
  print_pytorch(n, {"dense", local, merged, fixed}, of_pattern, options);
}

/// Peak memory of this process in MiB.
double peak_rss() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

void run_long(const Options& options) {
  constexpr int64_t kWidth = 64, kRounds = 2;
  const std::array<int64_t, 3> lengths{int64_t{1} << 16, int64_t{1} << 18, int64_t{1} << 20};
  std::array<double, 3> best_s{1e9, 1e9, 1e9}, pairs{}, tensor_mib{};
  double gemm = 0;
  for (int64_t round = 0; round < kRounds; ++round)  // taking turns, so that a slow minute falls on all lengths
    for (size_t x = 0; x < lengths.size(); ++x) {
      const int64_t n = lengths[x], l = std::llround(std::sqrt(static_cast<double>(n)));
      const LayerPattern layer{{{Local{l}, Column{l}}}};
      Allocator::of(kCpu).release_cached();
      Allocator::of(kCpu).reset_peak();
      const Inputs in(n, kWidth);
      gemm = std::max(gemm, gemm_rate(options.seconds / 4));
      const Timing times = time_runs([&] { in.forward_and_backward(layer, 1); }, options.seconds, 1);
      best_s[x] = std::min(best_s[x], times.best_s);
      tensor_mib[x] = static_cast<double>(Allocator::of(kCpu).stats().total_peak) / (1 << 20);
      if (round == 0) pairs[x] = pairs_of(layer.for_head(0), n);
    }
  fmt::print("local(l) + column(l), l = sqrt(n), forward and backward, f32, one head of {}, sgemm {:.0f} GFLOP/s\n",
             kWidth, gemm);
  fmt::print("{:>8} {:>5} {:>14} {:>7} {:>9} {:>7} {:>8} {:>8} {:>12}\n", "n", "l", "pairs", "factor", "seconds",
             "factor", "GFLOP/s", "of gemm", "tensors MiB");
  for (size_t x = 0; x < lengths.size(); ++x) {
    const double rate = 14e-9 * kWidth * pairs[x] / best_s[x];
    const auto factor = [&](const std::array<double, 3>& of) {
      return x == 0 ? std::string("-") : fmt::format("{:.2f}", of[x] / of[x - 1]);
    };
    fmt::print("{:>8} {:>5.0f} {:>14.0f} {:>7} {:>9.3f} {:>7} {:>8.1f} {:>7.0f}% {:>12.0f}\n", lengths[x],
               std::sqrt(static_cast<double>(lengths[x])), pairs[x], factor(pairs), best_s[x], factor(best_s), rate,
               100 * rate / gemm, tensor_mib[x]);
  }
  fmt::print("peak of the process: {:.0f} MiB\n", peak_rss());
}

/// The text behind `--name=`, or null.
const char* value_of(const std::string& argument, const std::string& name) {
  return argument.rfind("--" + name + "=", 0) == 0 ? argument.c_str() + name.size() + 3 : nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  bool long_run = false;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (const char* n = value_of(argument, "n"); n && std::atoll(n) > 0)
      options.n = std::atoll(n);
    else if (const char* heads = value_of(argument, "heads"); heads && std::atoll(heads) > 0)
      options.heads = std::atoll(heads);
    else if (const char* width = value_of(argument, "width"); width && std::atoll(width) > 0)
      options.width = std::atoll(width);
    else if (const char* seconds = value_of(argument, "seconds"); seconds && std::atof(seconds) > 0)
      options.seconds = std::atof(seconds);
    else if (const char* pattern = value_of(argument, "pattern"))
      options.pattern = pattern;
    else if (const char* python = value_of(argument, "python"))
      options.python = python;
    else if (argument == "--long")
      long_run = true;
    else {
      fmt::print(stderr,
                 "usage: attention_benchmark [--n=N] [--pattern=TEXT] [--heads=H] [--width=D] [--seconds=S] "
                 "[--python=PROGRAM]\n       attention_benchmark --long [--seconds=S]\n");
      return 2;
    }
  }
  try {
    if (long_run) {
      run_long(options);
      return 0;
    }
    fmt::print("f32, batch 1, {} heads of width {}, {} threads, instruction set {}, sgemm {:.0f} GFLOP/s\n",
               options.heads, options.width, omp_get_max_threads(), cpu::tile_target(), gemm_rate(options.seconds));
    print_head();
    std::vector<int64_t> lengths{512, 1024, 3072, 12288};
    if (options.n != 0) lengths = {options.n};
    for (const int64_t n : lengths) run_length(n, options);
  } catch (const Error& error) {
    fmt::print(stderr, "attention_benchmark: {}\n", error.what());
    return 1;
  }
  return 0;
}

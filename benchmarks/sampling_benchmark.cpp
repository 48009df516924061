// Time of one token while sampling: the attention of one layer at position n - 1, for growing n.
//
//   sampling_benchmark [--heads=4] [--width=64] [--steps=400] [--longest=65536]
//
// A step appends a key and a value and attends from them (ops/sparse_attention/decode.h). The caches are filled with
// random numbers up to the last `steps` positions, which are timed: the best and the median step. The rival, the
// dense cache (`dense c.`), keeps every position of every head ([n, heads * width], as a cache without patterns would)
// and visits the pattern's keys in it; for `dense` it is the same work in another order of memory. `keys` are those of
// one query at n - 1, `MiB` what the cache holds and what the dense one does.

#include <fmt/core.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include "core/rng.h"
#include "ops/sparse_attention/decode.h"
#include "ops/sparse_attention/rows_cpu.h"

using namespace lacuna;

namespace {

struct Options {
  int64_t heads = 4, width = 64, longest = 65536;
  int64_t steps = 400;  // timed
};

Tensor random_tensor(const Shape& shape, uint64_t seed) {
  const Tensor t = empty(shape, DType::f32);
  const Rng rng(seed, RandomPurpose::test);
  for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = static_cast<float>(rng.uniform({}, i) * 2 - 1);
  return t;
}

/// Every position of every head, one after the other.
class DenseCache {
 public:
  DenseCache(const LayerPattern& pattern, int64_t n_heads, int64_t n_ctx, int64_t width)
      : width_(width),
        k_(empty({n_ctx, n_heads * width}, DType::f32)),
        v_(empty({n_ctx, n_heads * width}, DType::f32)) {
    for (int64_t h = 0; h < n_heads; ++h) heads_.push_back(parts_of(pattern.for_head(h)));
  }

  void append(const Tensor& k, const Tensor& v) {
    copy(k, k_.slice(length_, length_ + 1));
    copy(v, v_.slice(length_, length_ + 1));
    ++length_;
  }

  Tensor attend(const Tensor& q) const {
    const Tensor o = empty(q.shape(), DType::f32);
    const int64_t row = k_.dim(1);
#pragma omp parallel for schedule(static)
    for (size_t h = 0; h < heads_.size(); ++h) {
      const int64_t at = static_cast<int64_t>(h) * width_;
      cpu::attend_row(heads_[h], length_ - 1, q.data<float>() + at, k_.data<float>() + at, row, width_,
                      v_.data<float>() + at, row, width_, o.data<float>() + at);
    }
    return o;
  }

  int64_t bytes() const { return 2 * k_.numel() * size_of(DType::f32); }

 private:
  int64_t width_, length_ = 0;
  std::vector<std::vector<Part>> heads_;
  Tensor k_, v_;
};

struct Rows {  // of successive positions, reused round and round
  explicit Rows(const Options& options)
      : q(random_tensor({kCount, options.heads * options.width}, 1)),
        k(random_tensor({kCount, options.heads * options.width}, 2)),
        v(random_tensor({kCount, options.heads * options.width}, 3)) {}
  static constexpr int64_t kCount = 1024;
  static Tensor of(const Tensor& rows, int64_t i) { return rows.slice(i % kCount, i % kCount + 1); }
  Tensor q, k, v;
};

struct Measured {
  double best_us = 0, median_us = 0;
};

/// Appends n - steps positions untimed, then times the last ones.
template <class Cache>
Measured measure(Cache& cache, int64_t n, int64_t steps, const Rows& rows) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> us;
  for (int64_t i = 0; i < n; ++i) {
    const Tensor q = Rows::of(rows.q, i), k = Rows::of(rows.k, i), v = Rows::of(rows.v, i);
    const auto start = Clock::now();
    cache.append(k, v);
    if (i < n - steps) continue;
    cache.attend(q);
    us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
  }
  std::sort(us.begin(), us.end());
  return {us.front(), us[us.size() / 2]};
}

void run_length(int64_t n, const std::string& text, const Options& options) {
  const LayerPattern layer = parse_attention(text).layers[0];
  const Rows rows(options);
  const int64_t steps = std::min(n / 2, options.steps);
  DecodeCache ours(layer, options.heads, n, 1, options.width, options.width, DType::f32);
  DenseCache dense(layer, options.heads, n, options.width);
  const Measured a = measure(ours, n, steps, rows), b = measure(dense, n, steps, rows);
  int64_t keys = 0;
  for_each_key(parts_of(layer.for_head(0)), n - 1, [&](int64_t) { ++keys; });
  constexpr double kMiB = 1 << 20;
  fmt::print("{:>6} {:<56} {:>6} {:>10.1f} {:>10.1f} {:>10.1f} {:>10.1f} {:>8.2f} {:>8.2f}\n", n, text, keys, a.best_us,
             a.median_us, b.best_us, b.median_us, static_cast<double>(ours.bytes()) / kMiB,
             static_cast<double>(dense.bytes()) / kMiB);
  std::fflush(stdout);
}

int64_t value_of(const std::string& argument, const std::string& name) {
  return argument.rfind(name + "=", 0) == 0 ? std::stoll(argument.substr(name.size() + 1)) : -1;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (const int64_t x = value_of(argument, "--heads"); x > 0)
      options.heads = x;
    else if (const int64_t x = value_of(argument, "--width"); x > 0)
      options.width = x;
    else if (const int64_t x = value_of(argument, "--steps"); x > 0)
      options.steps = x;
    else if (const int64_t x = value_of(argument, "--longest"); x > 0)
      options.longest = x;
    else {
      fmt::print(stderr, "usage: sampling_benchmark [--heads=H] [--width=D] [--steps=N] [--longest=N]\n");
      return 2;
    }
  }
  fmt::print("f32, one sequence, one layer, {} heads of width {}, {} threads; microseconds per token\n", options.heads,
             options.width, omp_get_max_threads());
  fmt::print("{:>6} {:<56} {:>6} {:>10} {:>10} {:>10} {:>10} {:>8} {:>8}\n", "n", "pattern", "keys", "best", "median",
             "dense c.", "median", "MiB", "dense c.");
  for (const char* text : {"local(window=128)", "column(stride=128)", "local(window=128) + column(stride=128)",
                           "fixed_block(stride=128) + fixed_summary(stride=128, c=8)", "dense"})
    for (int64_t n = 1024; n <= options.longest; n *= 4) run_length(n, text, options);
  return 0;
}

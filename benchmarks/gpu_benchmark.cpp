// The kernels of a GPU one by one: time, useful arithmetic, memory traffic, and how near they come to the roofline.
//
//   gpu_benchmark [--json] [--small] [--runs=20] [NAME...]
//
// NAME chooses rows that begin with it, as attention or attention/column-96; `machine` chooses none, so that only the
// machine is measured. Useful arithmetic counts the pairs that a pattern allows, and two products per pair forward,
// five backward. Traffic is the least: every input once, every output once. The roofline is the longer of useful
// arithmetic at the rate of an 8192^3 product and traffic at that of a copy, both measured here first. Every run finds
// a cold L2 cache and the time is the median. Rows of attention forward say which kernel ran: that with wgmma, or one
// with mma. Exits with 77 where there is no GPU. --small runs every row once at a tiny size, to see that it runs: its
// figures mean nothing.

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "core/cuda/runtime.h"
#include "core/dispatch.h"
#include "core/rng.h"
#include "models/cost.h"
#include "ops/gelu/gelu_kernels.h"
#include "ops/layer_norm/layer_norm_kernels.h"
#include "ops/matmul/matmul_kernels.h"
#include "ops/softmax_cross_entropy/softmax_cross_entropy_kernels.h"
#include "ops/sparse_attention/cuda/launches.h"
#include "ops/sparse_attention/kernels.h"
#include "optim/adam.h"
#include "optim/clip.h"

namespace {

using namespace lacuna;

struct Options {
  bool json = false, small = false;
  int64_t runs = 20;
  std::vector<std::string> names;
};

struct Work {
  double flops = 0.0, bytes = 0.0;  // useful arithmetic and least traffic of one run
  std::function<void()> run;
  const char* kernel = nullptr;  // which of several does it
};

struct Row {
  std::string name;
  std::function<Work()> prepare;  // allocates
};

// --- Time

/// Milliseconds of runs on the compute stream.
class Clock {
 public:
  explicit Clock(bool small)
      : stream_(gpu::compute_stream(kCuda)),
        delay_from_(empty({small ? 16 : int64_t{1} << 30}, DType::u8, kCuda)),
        delay_to_(empty_like(delay_from_)),
        delays_(small ? 1 : 10) {}

  /// Keeps the GPU busy for some milliseconds, so that what is enqueued next does not wait for the host.
  void delay() const {
    for (int i = 0; i < delays_; ++i) gpu::copy_bytes(stream_, delay_to_.raw(), delay_from_.raw(), delay_to_.bytes());
  }

  double median_ms(const std::function<void()>& run, int64_t runs) const {
    for (int64_t i = 0; i < std::min<int64_t>(runs, 3); ++i) run();
    std::deque<gpu::Event> begin(static_cast<size_t>(runs)), end(static_cast<size_t>(runs));
    delay();
    for (size_t i = 0; i < begin.size(); ++i) {
      gpu::set_bytes(stream_, delay_to_.raw(), 0, delay_to_.bytes() / 4);  // other data in the L2 cache
      begin[i].record(stream_);
      run();
      end[i].record(stream_);
    }
    gpu::synchronize(stream_);
    std::vector<double> times;
    for (size_t i = 0; i < begin.size(); ++i) times.push_back(end[i].milliseconds_since(begin[i]));
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  const Tensor& from() const { return delay_from_; }
  const Tensor& to() const { return delay_to_; }

 private:
  Stream stream_;
  Tensor delay_from_, delay_to_;
  int delays_;
};

// --- What is measured

/// Normal numbers on the GPU; a million of them again and again, for the host would take long to draw more.
Tensor random_tensor(const Shape& shape, DType dtype) {
  static const Tensor block = [] {
    std::vector<float> numbers(1'000'003);
    const Rng rng(1, RandomPurpose::test);
    for (size_t i = 0; i < numbers.size(); ++i)
      numbers[i] = static_cast<float>(rng.normal({}, static_cast<int64_t>(i)));
    return from_vector(numbers, {static_cast<int64_t>(numbers.size())});
  }();
  const Tensor drawn = to_device(to_dtype(block.slice(0, std::min(block.numel(), shape.numel())), dtype), kCuda),
               flat = empty({shape.numel()}, dtype, kCuda);
  for (int64_t i = 0; i < flat.numel(); i += drawn.numel()) {
    const int64_t count = std::min(drawn.numel(), flat.numel() - i);
    copy(drawn.slice(0, count), flat.slice(i, i + count));
  }
  return flat.reshape(shape);
}

struct AttentionCase {
  std::string name;
  int64_t batch, n, n_heads, d_qk, d_v;  // widths of a head
  const char* pattern;
};

// scripts/gpu_results.py has the goals for these. Batches are those of the paper's models.
const AttentionCase kAttention[] = {
    {"column-24-qk64-v128", 16, 3072, 2, 64, 128, "column(stride=128)"},
    {"column-96-width-32", 12, 12288, 16, 32, 32, "column(stride=128)"},
    {"column-96-width-64", 8, 12288, 8, 64, 64, "column(stride=128)"},
    {"column-128-width-64", 8, 16384, 8, 64, 64, "column(stride=128)"},
    {"column-136-width-64", 8, 17408, 8, 64, 64, "column(stride=128)"},  // the kernels of all patterns, for comparison
    {"column-256-width-128", 2, 65536, 4, 128, 128, "column(stride=256)"},
    {"column-512-width-64", 1, 262144, 4, 64, 64, "column(stride=512)"},
    {"column-1024-width-64", 1, 524288, 2, 64, 64, "column(stride=512)"},
    {"block-128-width-64", 8, 12288, 8, 64, 64, "fixed_block(stride=128)"},
    {"local-128-width-32", 12, 12288, 16, 32, 32, "local(window=128)"},
    {"local-128-width-64", 8, 12288, 8, 64, 64, "local(window=128)"},
    {"local-1024-width-64", 8, 12288, 8, 64, 64, "local(window=1024)"},
    {"strided-merged-width-64", 8, 12288, 8, 64, 64, "local(window=128) + column(stride=128)"},
    {"summary-width-64", 8, 12288, 8, 64, 64, "fixed_summary(stride=128, c=32, sub_blocks=4)"},
    {"fixed-merged-width-64", 8, 12288, 8, 64, 64,
     "fixed_block(stride=128) + fixed_summary(stride=128, c=32, sub_blocks=4)"},
    {"dense-width-64", 2, 12288, 8, 64, 64, "dense"},
    {"dense-width-128", 2, 12288, 4, 128, 128, "dense"},
};

Work attention(AttentionCase c, bool small, bool backward) {
  if (small) c.batch = 1, c.n = 160, c.n_heads = 1;
  const LayerPattern pattern = parse_attention(c.pattern).for_layer(0);
  AttentionProblem problem{c.batch, c.n, c.n_heads, c.d_qk, c.d_v, {}};
  double pairs = 0;
  for (int64_t h = 0; h < c.n_heads; ++h) {
    problem.heads.push_back(parts_of(pattern.for_head(h)));
    pairs += static_cast<double>(c.batch * attention_pairs(pattern.for_head(h), c.n));
  }
  const Shape shape_qkv{c.batch, c.n, c.n_heads * (2 * c.d_qk + c.d_v)}, shape_v{c.batch, c.n, c.n_heads * c.d_v};
  const auto random = [](const Shape& shape) { return random_tensor(shape, DType::bf16); };
  const auto [q, k, v] = split_qkv(random(shape_qkv), c.n_heads * c.d_qk);
  const AttentionSaved saved{q, k, v, empty(shape_v, DType::bf16, kCuda),
                             empty({c.batch, c.n_heads, c.n}, DType::f32, kCuda)};
  const double d_qk = static_cast<double>(c.d_qk), d_v = static_cast<double>(c.d_v),
               rows = static_cast<double>(c.batch * c.n * c.n_heads);
  const auto forward = [problem, saved] { LACUNA_DISPATCH(kCuda, attention_forward, problem, saved); };
  const int64_t before = gpu::hopper_launches;
  forward();
  const char* const kernel = gpu::hopper_launches > before ? "wgmma" : "mma";
  if (!backward) return {2 * pairs * (d_qk + d_v), rows * (4 * d_qk + 4 * d_v + 4), forward, kernel};
  const auto [dq, dk, dv] = split_qkv(empty_like(q.tensor), q.width);
  const AttentionGrads grads{dq, dk, dv};
  const Tensor d_o = random(shape_v);
  return {2 * pairs * (3 * d_qk + 2 * d_v), rows * (8 * d_qk + 8 * d_v + 4),
          [=] { LACUNA_DISPATCH(kCuda, attention_backward, problem, saved, d_o, grads); }};
}

/// Forward, and the gradients in x, in the weight, and in weight and bias, of rows x d_in by d_in x d_out.
Work linear(int64_t rows, int64_t d_in, int64_t d_out, char which) {
  const auto random = [](const Shape& shape) { return random_tensor(shape, DType::bf16); };
  const Tensor x = random({rows, d_in}), weight = random({d_out, d_in}), y = random({rows, d_out});
  const double m = static_cast<double>(rows), k = static_cast<double>(d_in), n = static_cast<double>(d_out);
  const double flops = 2 * m * k * n, bytes = 2 * (m * k + m * n + k * n);
  if (which == 'y') {
    const Tensor bias = random({d_out});
    return {flops, bytes, [=] { LACUNA_DISPATCH(kCuda, linear, x, weight, bias, y); }};
  }
  if (which == 'x')
    return {flops, bytes, [=] { LACUNA_DISPATCH(kCuda, matrix_product, false, y, false, weight, 0.0, x); }};
  const Tensor gradient = zeros({d_out, d_in}, DType::f32, kCuda);  // added to, so read and written
  const Tensor dbias = which == 'b' ? empty({d_out}, DType::f32, kCuda) : Tensor();
  return {flops, 2 * (m * k + m * n) + 8 * k * n + (which == 'b' ? 4 * n : 0),
          [=] { LACUNA_DISPATCH(kCuda, linear_gradients, y, x, 1.0, gradient, dbias); }};
}

/// With `fused`, add_dropout_layer_norm: forward reads the residual and a branch too and writes their sum, backward
/// reads the gradient of the sum and writes that of the branch.
Work layer_norm(int64_t rows, int64_t d, bool fused, bool backward) {
  const Tensor x = random_tensor({rows, d}, DType::bf16), y = empty_like(x), dx = empty_like(x);
  const Tensor beside = fused ? random_tensor({rows, d}, DType::bf16) : Tensor(),
               more = fused ? empty_like(x) : Tensor();
  const DropoutMask mask{.threshold = 6554};  // rate 0.1
  const BranchSum sum = fused ? BranchSum{x, beside, mask} : BranchSum{};
  const BranchGradients gradients{beside, more, mask};
  const Tensor gain = random_tensor({d}, DType::f32), bias = random_tensor({d}, DType::f32);
  const Tensor dgain = zeros_like(gain), dbias = zeros_like(bias);
  const Tensor mean = empty({rows}, DType::f32, kCuda), rstd = empty_like(mean);
  const double elements = static_cast<double>(x.numel()), statistics = 8.0 * static_cast<double>(rows);
  const auto forward = [=] {
    LACUNA_DISPATCH(kCuda, layer_norm_forward, sum, gain, bias, 1e-5f, fused ? more : x, y, mean, rstd);
  };
  if (!backward) return {0, (fused ? 8 : 4) * elements + statistics, forward};
  forward();
  return {0, (fused ? 10 : 6) * elements + statistics,
          [=] { LACUNA_DISPATCH(kCuda, layer_norm_backward, y, x, gain, mean, rstd, gradients, dx, dgain, dbias); }};
}

Work gelu(int64_t rows, int64_t d, bool backward) {
  const Tensor x = random_tensor({rows, d}, DType::bf16), y = random_tensor({rows, d}, DType::bf16), dx = empty_like(x);
  const double elements = static_cast<double>(x.numel());
  if (!backward) return {0, 4 * elements, [=] { LACUNA_DISPATCH(kCuda, gelu_forward, x, y); }};
  return {0, 6 * elements, [=] { LACUNA_DISPATCH(kCuda, gelu_backward, y, x, dx); }};
}

Work cross_entropy(int64_t rows, bool backward) {
  const Tensor logits = random_tensor({rows, 256}, DType::bf16), dlogits = empty_like(logits);
  const Tensor targets = zeros({rows}, DType::u8, kCuda), row_loss = empty({rows}, DType::f64, kCuda),
               lse = empty({rows}, DType::f32, kCuda), dloss = full({}, DType::f32, 1.0, kCuda);
  const double elements = static_cast<double>(logits.numel()), n = static_cast<double>(rows);
  const auto forward = [=] { LACUNA_DISPATCH(kCuda, softmax_cross_entropy_forward, logits, targets, lse, row_loss); };
  if (!backward) return {0, 2 * elements + 13 * n, forward};
  forward();
  return {0, 4 * elements + 5 * n,
          [=] { LACUNA_DISPATCH(kCuda, softmax_cross_entropy_backward, dloss, logits, targets, lse, dlogits); }};
}

/// Unscale, clip, update, round to bf16: 28 bytes of f32 and 2 of bf16 for every parameter.
Work adam(int64_t count) {
  struct State {
    Parameters parameters;
    Adam adam;
    Tensor squares;
    explicit State(int64_t n)
        : parameters({{"weight", {n / 512, 512}, 0.0, 0.5}}, /*seed=*/1, DType::f32, kCuda, /*rounded=*/DType::bf16),
          adam(parameters, {}),
          squares(gradient_sum_of_squares(parameters)) {}
  };
  const auto state = std::make_shared<State>(count);
  return {0, 30.0 * static_cast<double>(count),
          [state] { state->adam.step({.lr = 1e-4, .sum_of_squares = state->squares, .max_norm = 1.0}); }};
}

std::vector<Row> all_rows(bool small) {
  const auto rows = [small](int64_t tokens) { return small ? int64_t{24} : tokens; };  // rows outlive this call
  const auto width = [small](int64_t d) { return small ? d / 16 : d; };
  std::vector<Row> all;
  for (const AttentionCase& c : kAttention)
    for (const bool backward : {false, true})
      all.push_back({fmt::format("attention/{}/{}", c.name, backward ? "backward" : "forward"),
                     [=] { return attention(c, small, backward); }});
  for (const auto& [tokens, d_in, d_out] : {std::array<int64_t, 3>{98304, 512, 1536},
                                            {98304, 512, 512},
                                            {98304, 512, 2048},
                                            {98304, 2048, 512},
                                            {49152, 256, 512},
                                            {49152, 256, 256},
                                            {49152, 512, 256},
                                            {24576, 1536, 4608},
                                            {24576, 1536, 6144}})
    for (const char which : {'y', 'x', 'w', 'b'})
      all.push_back({fmt::format("linear/{}-to-{}/{}", d_in, d_out,
                                 which == 'y'   ? "forward"
                                 : which == 'x' ? "dx"
                                 : which == 'w' ? "dweight"
                                                : "dweight-dbias"),
                     [=, tokens = rows(tokens), d_in = width(d_in), d_out = width(d_out)] {
                       return linear(tokens, d_in, d_out, which);
                     }});
  for (const bool backward : {false, true}) {
    const char* const pass = backward ? "backward" : "forward";
    for (const int64_t d : {256, 512, 1536})
      for (const bool fused : {false, true})
        all.push_back({fmt::format("{}/{}/{}", fused ? "add-dropout-layer-norm" : "layer-norm", d, pass),
                       [=] { return layer_norm(rows(147456), d, fused, backward); }});
    all.push_back({fmt::format("gelu/2048/{}", pass), [=] { return gelu(rows(98304), 2048, backward); }});
    all.push_back({fmt::format("cross-entropy/256/{}", pass), [=] { return cross_entropy(rows(147456), backward); }});
  }
  all.push_back({"adam/152M", [=] { return adam(small ? 40960 : 152'000'000 / 512 * 512); }});
  return all;
}

// --- Output

class Report {
 public:
  explicit Report(const Options& options) : options_(options) {}

  void heading(const nlohmann::json& machine) {
    if (options_.json) return line(machine);
    for (const auto& [key, value] : machine.items()) fmt::print("{:<24} {}\n", key, value.dump());
    fmt::print("{:<42} {:>10} {:>12} {:>9} {:>9}\n", "", "us", "useful TF/s", "GB/s", "roofline");
  }

  void row(const std::string& name, const Work& work, double ms, double roofline_ms) {
    const double tflops = work.flops / ms * 1e-9, gb_per_s = work.bytes / ms * 1e-6;
    if (options_.json) {
      nlohmann::json object{{"name", name},
                            {"us", 1e3 * ms},
                            {"useful_tflops", tflops},
                            {"gb_per_s", gb_per_s},
                            {"roofline", roofline_ms / ms},
                            {"useful_flops", work.flops},
                            {"least_bytes", work.bytes}};
      if (work.kernel) object["kernel"] = work.kernel;
      line(object);
    } else {
      fmt::print("{:<42} {:>10.1f} {:>12.1f} {:>9.0f} {:>8.0f}%{}\n", name, 1e3 * ms, tflops, gb_per_s,
                 100 * roofline_ms / ms, work.kernel ? fmt::format("  {}", work.kernel) : "");
    }
    std::fflush(stdout);
  }

  void failed(const std::string& name, const char* reason) {
    ++failures_;
    if (options_.json) return line({{"name", name}, {"failed", reason}});
    fmt::print("{:<42} failed: {}\n", name, reason);
  }

  int failures() const { return failures_; }

 private:
  static void line(const nlohmann::json& object) {
    fmt::print("{}\n", object.dump());
    std::fflush(stdout);
  }

  const Options& options_;
  int failures_ = 0;
};

// --- The machine

struct Machine {
  double bytes_per_ms = 0.0, flops_per_ms = 0.0;
};

/// Microseconds of one launch among many: as fast as the host launches, and what the GPU needs when it need not wait.
std::pair<double, double> launch_us(const Clock& clock, bool small) {
  const Stream stream = gpu::compute_stream(kCuda);
  const Tensor one = empty({1}, DType::f32, kCuda);
  const int launches = small ? 3 : 1000;
  const auto launch_all = [&] {
    for (int i = 0; i < launches; ++i) fill(one, 1.0);
  };
  const auto time = [&](const std::function<void()>& work, bool delayed) {
    gpu::Event begin, end;
    if (delayed) clock.delay();
    begin.record(stream);
    work();
    end.record(stream);
    gpu::synchronize(stream);
    return 1e3 * end.milliseconds_since(begin) / launches;
  };
  time(launch_all, false);
  const double from_host = time(launch_all, false);
  gpu::Graph graph;
  time([&] { graph.run(stream, launch_all); }, true);
  return {from_host, time([&] { graph.run(stream, launch_all); }, true)};
}

Machine calibrate(const Options& options, const Clock& clock, Report& report) {
  const int64_t side = options.small ? 64 : 8192;
  const double copy_ms = clock.median_ms([&] { copy(clock.from(), clock.to()); }, options.runs);
  const double copied = 2.0 * static_cast<double>(clock.to().bytes());
  const Work product = linear(side, side, side, 'x');
  const double product_ms = clock.median_ms(product.run, options.runs);
  const auto [launch, graph] = launch_us(clock, options.small);
  const gpu::DeviceProperties& p = gpu::properties(kCuda);
  report.heading({{"device", p.name},
                  {"compute_capability", fmt::format("{}.{}", p.major, p.minor)},
                  {"multiprocessors", p.multiprocessors},
                  {"memory_bytes", p.memory_bytes},
                  {"versions", gpu::versions()},
                  {"copy_gb_per_s", copied / copy_ms * 1e-6},
                  {"matmul_8192_tflops", product.flops / product_ms * 1e-9},
                  {"launch_us", launch},
                  {"launch_in_graph_us", graph}});
  return {copied / copy_ms, product.flops / product_ms};
}

int run(const Options& options) {
  gpu::check_usable(kCuda);
  std::vector<Row> chosen;
  for (Row& row : all_rows(options.small))
    if (options.names.empty() || std::any_of(options.names.begin(), options.names.end(),
                                             [&](const std::string& name) { return row.name.starts_with(name); }))
      chosen.push_back(std::move(row));
  const bool machine_alone = options.names == std::vector<std::string>{"machine"};
  check_usage(machine_alone || !chosen.empty(), "gpu_benchmark: no row begins with '",
              options.names.empty() ? "" : options.names.front(), "'");

  Report report(options);
  const Clock clock(options.small);
  const Machine machine = calibrate(options, clock, report);
  for (const Row& row : chosen) {
    try {
      const Work work = row.prepare();
      const double ms = clock.median_ms(work.run, options.runs);
      report.row(row.name, work, ms, std::max(work.flops / machine.flops_per_ms, work.bytes / machine.bytes_per_ms));
    } catch (const std::exception& error) {
      report.failed(row.name, error.what());
    }
    Allocator::of(kCuda).release_cached();
  }
  return report.failures() > 0 ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Times the kernels of a GPU");
  Options options;
  app.add_flag("--json", options.json, "one line of JSON for the machine and for each row");
  app.add_flag("--small", options.small, "every row once at a tiny size: does it run?");
  app.add_option("--runs", options.runs, "timed runs of each")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("NAME", options.names, "rows that begin with it; machine: none of them");
  CLI11_PARSE(app, argc, argv);
  if (options.small) options.runs = 1;
  if (gpu::device_count() == 0) {
    fmt::print(stderr, "gpu_benchmark: skipped: {}\n", gpu::why_no_device());
    return 77;
  }
  try {
    return run(options);
  } catch (const UsageError& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}

// Matrix products at the shapes of the models: f32 and f64 as the models call them, and OpenBLAS where the machine has it.
//
//   gemm_benchmark [--seconds=0.5] [--f64]
//
// Prints GFLOP/s of the fastest and of the median of many short runs. The threads are OpenMP's (OMP_NUM_THREADS);
// OpenBLAS is loaded at run time and given as many. A product is C [m, n] = op(A) op(B) over k: `x W^T` is a linear
// layer's forward pass, `dy W` the gradient in its input, `dy^T x` in its weight.

#include <dlfcn.h>
#include <fmt/core.h>
#include <omp.h>
#include <CLI/CLI.hpp>

#include <cstdio>
#include <string>
#include <vector>

#include "benchmarks/timing.h"
#include "core/tensor.h"
#include "ops/matmul/matmul.h"

using namespace lacuna;

namespace {

struct Product {
  const char* what;
  bool transpose_a, transpose_b;
  int64_t m, n, k;

  int64_t lda() const { return transpose_a ? m : k; }
  int64_t ldb() const { return transpose_b ? k : n; }
  double gflop() const { return 2e-9 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k); }
};

constexpr Product kProducts[] = {
    {"x W^T", false, true, 3072, 768, 256},   // d = 256: q, k and v in one
    {"x W^T", false, true, 3072, 1024, 256},  // ff in
    {"x W^T", false, true, 3072, 256, 1024},  // ff out
    {"dy W", false, false, 3072, 256, 1024},  {"dy^T x", true, false, 1024, 256, 3072},
    {"dy^T x", true, false, 256, 1024, 3072}, {"x W^T", false, true, 12288, 2048, 512},  // d = 512: ff in
    {"x W^T", false, true, 3072, 128, 128},                                            // laptop, d = 128: attention out
    {"x W^T", false, true, 3072, 512, 128},                                            // ff in
    {"dy^T x", true, false, 512, 128, 3072},  {"x W^T", false, true, 3072, 192, 192},  // laptop, d = 192
    {"x W^T", false, true, 3072, 768, 192},   {"dy^T x", true, false, 768, 192, 3072},
};

/// OpenBLAS of the running machine, if there is one.
class OpenBlas {
 public:
  OpenBlas() : library_(dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL)) {
    if (!library_) return;
    sgemm_ = reinterpret_cast<Sgemm>(dlsym(library_, "cblas_sgemm"));
    const auto set_threads = reinterpret_cast<void (*)(int)>(dlsym(library_, "openblas_set_num_threads"));
    if (set_threads) set_threads(omp_get_max_threads());
  }

  bool found() const { return sgemm_ != nullptr; }

  std::string name() const {
    const auto config = reinterpret_cast<char* (*)()>(dlsym(library_, "openblas_get_config"));
    return config ? config() : "OpenBLAS";
  }

  void operator()(const Product& p, const float* a, const float* b, float* c) const {
    constexpr int kRowMajor = 101, kPlain = 111, kTransposed = 112;
    sgemm_(kRowMajor, p.transpose_a ? kTransposed : kPlain, p.transpose_b ? kTransposed : kPlain, static_cast<int>(p.m),
           static_cast<int>(p.n), static_cast<int>(p.k), 1.0f, a, static_cast<int>(p.lda()), b,
           static_cast<int>(p.ldb()), 0.0f, c, static_cast<int>(p.n));
  }

 private:
  using Sgemm = void (*)(int, int, int, int, int, int, float, const float*, int, const float*, int, float, float*, int);
  void* library_;
  Sgemm sgemm_ = nullptr;
};

/// "best median" of `fn`, which computes p, in GFLOP/s.
template <class Fn>
std::string rate(const Product& p, double seconds, const Fn& fn) {
  const Timing t = time_runs(fn, seconds);
  return fmt::format("{:>8.1f} {:>8.1f}", p.gflop() / t.best_s, p.gflop() / t.median_s);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Matrix products at the shapes of the models, in GFLOP/s");
  double seconds = 0.5;
  bool f64 = false;
  app.add_option("--seconds", seconds, "time for each measurement")->check(CLI::PositiveNumber);
  app.add_flag("--f64", f64, "also the f64 product");
  CLI11_PARSE(app, argc, argv);

  const OpenBlas openblas;
  fmt::print("threads {}, rival {}\n", omp_get_max_threads(),
             openblas.found() ? openblas.name() : "none: no libopenblas.so.0");
  fmt::print("{:<8} {:>6} {:>5} {:>5}   {:>17}{}{}\n", "product", "m", "n", "k", "ours best median",
             openblas.found() ? "  OpenBLAS best median" : "", f64 ? "   f64 best median" : "");
  for (const Product& p : kProducts) {
    const Tensor a = full({p.m, p.k}, DType::f32, 0.5), b = full({p.k, p.n}, DType::f32, 0.25);
    const Tensor c = empty({p.m, p.n}, DType::f32);
    const auto run = [&p]<class T>(const T* pa, const T* pb, T* pc) {
      gemm(p.transpose_a, p.transpose_b, p.m, p.n, p.k, T{1}, pa, p.lda(), pb, p.ldb(), T{0}, pc, p.n);
    };
    fmt::print("{:<8} {:>6} {:>5} {:>5}  {}", p.what, p.m, p.n, p.k,
               rate(p, seconds, [&] { run(a.data<float>(), b.data<float>(), c.data<float>()); }));
    if (openblas.found())
      fmt::print("     {}", rate(p, seconds, [&] { openblas(p, a.data<float>(), b.data<float>(), c.data<float>()); }));
    if (f64) {
      const Tensor a64 = to_dtype(a, DType::f64), b64 = to_dtype(b, DType::f64), c64 = to_dtype(c, DType::f64);
      fmt::print(" {}", rate(p, seconds, [&] { run(a64.data<double>(), b64.data<double>(), c64.data<double>()); }));
    }
    fmt::print("\n");
    std::fflush(stdout);
  }
}

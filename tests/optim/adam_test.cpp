#include "optim/adam.h"

#include <doctest/doctest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "optim/clip.h"
#include "optim/schedule.h"
#include "tests/optim/parameters_for_test.h"

namespace lacuna {
namespace {

constexpr ScheduleConfig kSchedule{.lr = 0.05, .warmup_steps = 4, .total_steps = 10};
constexpr AdamConfig kConfig{.weight_decay = 0.1};
constexpr double kMaxNorm = 100.0;

/// Gradients whose norm is above kMaxNorm in odd steps alone.
double gradient_scale(int64_t step) { return step % 2 == 0 ? 0.2 : 2.0; }

/// Warm-up, clipping and Adam in f64, written from the papers: Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019.
struct Reference {
  std::vector<double> p, m, v;
  std::vector<bool> decays;

  void step(int64_t step, const std::vector<double>& gradient) {
    double squares = 0.0;
    for (const double g : gradient) squares += g * g;
    const double norm = std::sqrt(squares), clip = norm > kMaxNorm ? kMaxNorm / norm : 1.0;
    const double lr = step < 4
                          ? 0.05 * static_cast<double>(step + 1) / 4.0
                          : 0.05 * (1.0 + std::cos(3.14159265358979323846 * static_cast<double>(step - 4) / 6.0)) / 2.0;
    const auto t = static_cast<double>(step + 1);
    for (size_t i = 0; i < p.size(); ++i) {
      const double g = clip * gradient[i];
      m[i] = 0.9 * m[i] + 0.1 * g;
      v[i] = 0.999 * v[i] + 0.001 * g * g;
      const double m_hat = m[i] / (1.0 - std::pow(0.9, t)), v_hat = v[i] / (1.0 - std::pow(0.999, t));
      p[i] -= lr * m_hat / (std::sqrt(v_hat) + 1e-8) + (decays[i] ? lr * 0.1 * p[i] : 0.0);
    }
  }
};

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double largest = 0.0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

TEST_CASE("adam: ten steps with warm-up, clipping and decay follow the reference") {
  for (const DType dtype : {DType::f64, DType::f32}) {
    CAPTURE(name_of(dtype));
    const Parameters parameters(specs_for_test(), /*seed=*/1, dtype);
    Adam adam(parameters, kConfig);
    const size_t count = elements(parameters).size();
    Reference reference{elements(parameters), std::vector<double>(count), std::vector<double>(count), {}};
    for (const Parameters::Entry& entry : parameters.entries())
      reference.decays.insert(reference.decays.end(), static_cast<size_t>(entry.shape.numel()),
                              entry.shape.rank() >= 2);

    for (int64_t step = 0; step < 10; ++step) {
      const std::vector<double> gradients = draw_gradients(parameters, step, gradient_scale(step));
      const double norm = global_gradient_norm(parameters);
      REQUIRE((norm > kMaxNorm) == (step % 2 == 1));
      adam.step(learning_rate(kSchedule, step), clip_scale(norm, kMaxNorm));
      reference.step(step, gradients);
    }
    const double tolerance = dtype == DType::f64 ? 1e-13 : 2e-6;  // of numbers around 1
    CHECK(largest_difference(elements(parameters), reference.p) < tolerance);
    CHECK(largest_difference(elements(parameters, adam.exp_avg()), reference.m) < tolerance);
    CHECK(largest_difference(elements(parameters, adam.exp_avg_sq()), reference.v) < tolerance);
    CHECK(adam.steps() == 10);
  }
}

TEST_CASE("adam: the same bits for any number of threads, and padding stays zero") {
  const int threads = omp_get_max_threads();
  std::vector<Tensor> results;
  for (const int t : {1, 2, 3}) {
    omp_set_num_threads(t);
    const Parameters parameters(specs_for_test(), /*seed=*/1);
    Adam adam(parameters, kConfig);
    for (int64_t step = 0; step < 3; ++step) {
      draw_gradients(parameters, step, 1.0);
      adam.step(0.01, clip_scale(global_gradient_norm(parameters), 1.0));
    }
    const Parameters::Entry& first = parameters.entries()[0];
    for (int64_t e = first.shape.numel(); e < parameters.entries()[1].offset; ++e)
      CHECK(parameters.values().data<float>()[e] == 0.0f);
    results.push_back(clone(parameters.values()));
  }
  omp_set_num_threads(threads);
  for (const Tensor& result : results)
    CHECK(std::memcmp(result.raw(), results[0].raw(), static_cast<size_t>(result.bytes())) == 0);
}

TEST_CASE("adam: a step that continues from saved moments is the step of the original") {
  const Parameters original({{"w", {8, 8}, 1.0}}, 1), resumed({{"w", {8, 8}, 1.0}}, 1);
  Adam adam(original, kConfig), again(resumed, kConfig);
  for (int64_t step = 0; step < 2; ++step) {
    draw_gradients(original, step, 1.0);
    adam.step(0.01);
  }
  copy(original.values(), resumed.values());
  copy(adam.exp_avg(), again.exp_avg());
  copy(adam.exp_avg_sq(), again.exp_avg_sq());
  again.set_steps(adam.steps());
  draw_gradients(original, 2, 1.0);
  draw_gradients(resumed, 2, 1.0);
  adam.step(0.01);
  again.step(0.01);
  CHECK(elements(original) == elements(resumed));
}

TEST_CASE("adam: moments count as optimizer memory") {
  const Parameters parameters(specs_for_test(), 1);
  const auto in_use = [] {
    return Allocator::of(kCpu).stats().current[static_cast<size_t>(MemoryCategory::optimizer)];
  };
  const int64_t before = in_use();
  const Adam adam(parameters, kConfig);
  CHECK(in_use() - before >= 2 * parameters.values().bytes());
}

TEST_CASE("adam: factors out of range are refused") {
  const Parameters parameters({{"w", {2, 2}, 1.0}}, 1);
  CHECK_THROWS_WITH_AS(Adam(parameters, {.beta1 = 1.0}), "adam: beta1 and beta2 must be in [0, 1), got 1", UsageError);
  CHECK_THROWS_WITH_AS(Adam(parameters, {.eps = 0.0}), "adam: eps must be above 0, got 0", UsageError);
  CHECK_THROWS_WITH_AS(Adam(parameters, {.weight_decay = -1.0}), "adam: weight_decay must be at least 0, got -1",
                       UsageError);
}

}  // namespace
}  // namespace lacuna

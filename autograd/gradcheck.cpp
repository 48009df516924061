#include "autograd/gradcheck.h"

#include <algorithm>
#include <cmath>

#include "core/rng.h"

namespace lacuna {
namespace {

double projection(const Variable& y, const std::vector<double>& weights) {
  const double* const data = y.value().data<double>();
  double sum = 0.0;
  for (size_t i = 0; i < weights.size(); ++i) sum += weights[i] * data[i];
  return sum;
}

}  // namespace

void expect_gradients(const std::vector<Variable>& inputs, const std::function<Variable()>& fn,
                      const GradientCheck& options) {
  for (size_t i = 0; i < inputs.size(); ++i) {
    check(inputs[i].requires_grad() && inputs[i].dtype() == DType::f64, "expect_gradients: input ", i,
          " must be an f64 leaf that requires a gradient, got ", inputs[i].dtype());
    inputs[i].clear_grad();
  }

  const Variable y = fn();
  const Rng rng(options.seed, RandomPurpose::test);
  std::vector<double> weights(static_cast<size_t>(y.numel()));
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = rng.normal({}, static_cast<int64_t>(i));
  backward(y, from_vector(weights, y.shape()));

  const GradientMode off(false);
  for (size_t i = 0; i < inputs.size(); ++i) {
    check(inputs[i].has_grad(), "expect_gradients: backward gave input ", i, " no gradient");
    const int64_t count = inputs[i].numel();
    double* const x = inputs[i].value().data<double>();
    std::vector<double> numeric(static_cast<size_t>(count));
    double largest = 0.0;
    for (int64_t e = 0; e < count; ++e) {
      const double saved = x[e];
      x[e] = saved + options.eps;
      const double above = projection(fn(), weights);
      x[e] = saved - options.eps;
      const double below = projection(fn(), weights);
      x[e] = saved;
      const double derivative = (above - below) / (2.0 * options.eps);
      numeric[static_cast<size_t>(e)] = derivative;
      largest = std::max(largest, std::abs(derivative));
    }
    const double* const analytic = inputs[i].grad().data<double>();
    for (int64_t e = 0; e < count; ++e) {
      const double difference = std::abs(analytic[e] - numeric[static_cast<size_t>(e)]);
      check(difference <= options.atol + options.rtol * largest, "expect_gradients: input ", i, " element ", e, " of ",
            inputs[i].shape(), ": backward gave ", analytic[e], ", central differences ",
            numeric[static_cast<size_t>(e)]);
    }
  }
}

}  // namespace lacuna

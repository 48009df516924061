#include "optim/clip.h"

#include <doctest/doctest.h>
#include <omp.h>

#include <cmath>
#include <limits>

#include "tests/optim/parameters_for_test.h"

namespace lacuna {
namespace {

TEST_CASE("clip: the norm of all gradients, with the same bits for any number of threads") {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const Parameters parameters(specs_for_test(), 1, dtype);
    CHECK(global_gradient_norm(parameters) == 0.0);
    long double squares = 0.0L;
    for (const double g : draw_gradients(parameters, 0, 3.0)) squares += static_cast<long double>(g) * g;

    const int threads = omp_get_max_threads();
    const double norm = global_gradient_norm(parameters);
    for (const int t : {1, 2, 3}) {
      omp_set_num_threads(t);
      CHECK(global_gradient_norm(parameters) == norm);
    }
    omp_set_num_threads(threads);
    CHECK(norm == doctest::Approx(static_cast<double>(std::sqrt(squares))).epsilon(1e-13));
  }
}

TEST_CASE("clip: a gradient of f32 beyond the range of its squares still has its norm") {
  const Parameters parameters({{"w", {2}}}, 1);
  parameters["w"].grad().data<float>()[0] = 3e30f;
  parameters["w"].grad().data<float>()[1] = 4e30f;
  CHECK(global_gradient_norm(parameters) == doctest::Approx(5e30).epsilon(1e-6));
}

TEST_CASE("clip: the factor shortens long gradients and leaves short ones") {
  CHECK(clip_scale(4.0, 1.0) == 0.25);
  CHECK(clip_scale(1.0, 1.0) == 1.0);
  CHECK(clip_scale(0.0, 1.0) == 1.0);
  CHECK_THROWS_WITH_AS(clip_scale(1.0, 0.0), "clip_scale: max_norm must be above 0, got 0", Error);
  CHECK_THROWS_WITH_AS(clip_scale(std::numeric_limits<double>::infinity(), 1.0),
                       "clip_scale: the norm of the gradient must be finite, got inf", Error);
  CHECK_THROWS_AS(clip_scale(std::nan(""), 1.0), Error);
}

}  // namespace
}  // namespace lacuna

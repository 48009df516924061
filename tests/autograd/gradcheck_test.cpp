#include "autograd/gradcheck.h"

#include <doctest/doctest.h>

#include "tests/autograd/toy_ops.h"

using namespace lacuna;
using toy::leaf, toy::map, toy::multiply, toy::product;

TEST_CASE("expect_gradients accepts a right gradient") {
  const Variable a = leaf({0.3, -1.2, 2.0}), b = leaf({1.0, 0.5, -0.7});
  CHECK_NOTHROW(expect_gradients({a, b}, [&] { return multiply(multiply(a, b), a); }));
  CHECK(to_vector<double>(a.value()) == std::vector<double>{0.3, -1.2, 2.0});
}

TEST_CASE("expect_gradients rejects a wrong, a missing and a slightly wrong gradient") {
  const Variable a = leaf({0.3, -1.2, 2.0});
  const auto with = [&](double factor) {
    return [&a, factor] {
      auto backward = [a = a.value(), factor](const Tensor& dy, const Needs&) {
        const Tensor scale = full(a.shape(), DType::f64, factor);
        return Grads{map(map(dy, a, product), scale, product)};
      };
      return record("square", map(a.value(), a.value(), product), {a}, backward);
    };
  };
  CHECK_NOTHROW(expect_gradients({a}, with(2.0)));
  CHECK_THROWS_AS(expect_gradients({a}, with(-2.0)), Error);
  CHECK_THROWS_AS(expect_gradients({a}, with(2.00001)), Error);
  const Variable unused = leaf({1.0});
  CHECK_THROWS_WITH_AS(expect_gradients({a, unused}, with(2.0)), "expect_gradients: backward gave input 1 no gradient",
                       Error);
}

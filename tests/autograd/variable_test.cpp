#include "autograd/variable.h"

#include <doctest/doctest.h>

#include "tests/autograd/toy_ops.h"

using namespace lacuna;
using toy::add, toy::leaf, toy::multiply;

namespace {
Tensor ones(int64_t n) { return full(Shape{n}, DType::f64, 1.0); }
}  // namespace

TEST_CASE("backward: shared subgraphs sum their gradients") {
  const Variable x = leaf({3.0, -2.0});
  const Variable square = multiply(x, x);               // used twice below
  backward(add(square, multiply(square, x)), ones(2));  // d(x^2 + x^3) = 2x + 3x^2
  CHECK(to_vector<double>(x.grad()) == std::vector<double>{33.0, 8.0});
}

TEST_CASE("backward: gradients that an operation returns twice are not summed in place") {
  const Variable a = leaf({1.0}), b = leaf({1.0});
  const Variable y = add(a, b);
  backward(add(y, add(a, a)), ones(1));
  CHECK(a.grad().data<double>()[0] == 3.0);
  CHECK(b.grad().data<double>()[0] == 1.0);
}

TEST_CASE("backward: accumulates over calls until cleared") {
  const Variable x = leaf({2.0});
  for (const double expected : {4.0, 8.0}) {
    backward(multiply(x, x));
    CHECK(x.grad().data<double>()[0] == expected);
  }
  x.clear_grad();
  CHECK_FALSE(x.has_grad());
  CHECK_THROWS_WITH_AS(x.grad(), "grad: no backward pass has reached this leaf [1]", Error);
}

TEST_CASE("backward: a leaf on a buffer accumulates there") {
  const Tensor buffer = zeros(Shape{3}, DType::f64);
  const Variable x(full(Shape{2}, DType::f64, 5.0), buffer.view(1, Shape{2}));
  backward(multiply(x, x), ones(2));
  backward(multiply(x, x), ones(2));
  CHECK(to_vector<double>(buffer) == std::vector<double>{0.0, 20.0, 20.0});
  x.clear_grad();
  CHECK(to_vector<double>(buffer) == std::vector<double>{0.0, 0.0, 0.0});
}

TEST_CASE("a chain of a million nodes fits on the stack, run backward or dropped") {
  const int64_t before = Allocator::of(kCpu).stats().total_current;
  {
    const Variable x = leaf({1.0});
    const Variable zero(zeros(Shape{1}, DType::f64));
    Variable y = x, dropped;
    for (int i = 0; i < 1000000; ++i) y = add(y, zero);
    for (int i = 0; i < 1000000; ++i) dropped = add(i ? dropped : x, zero);
    backward(y);
    CHECK(x.grad().data<double>()[0] == 1.0);
  }
  CHECK(Allocator::of(kCpu).stats().total_current == before);
}

namespace {
/// {a + b, a b}: one operation with two results.
std::vector<Variable> sum_and_product(const Variable& a, const Variable& b, int* calls = nullptr) {
  auto backward = [a = a.value(), b = b.value(), calls](const Grads& dys, const Needs&) {
    if (calls) ++*calls;
    const Tensor zero = zeros_like(a), dsum = dys[0].defined() ? dys[0] : zero,
                 dproduct = dys[1].defined() ? dys[1] : zero;
    return Grads{toy::map(dsum, toy::map(dproduct, b, toy::product), toy::sum),
                 toy::map(dsum, toy::map(dproduct, a, toy::product), toy::sum)};
  };
  return record_several("sum_and_product",
                        {toy::map(a.value(), b.value(), toy::sum), toy::map(a.value(), b.value(), toy::product)},
                        {a, b}, backward);
}
}  // namespace

TEST_CASE("record_several: gradients of all results arrive together, in one call") {
  const Variable a = leaf({3.0}), b = leaf({5.0});
  int calls = 0;
  const std::vector<Variable> y = sum_and_product(a, b, &calls);
  const Variable square = multiply(y[0], y[0]);  // used by another operation than y[1], and twice
  backward(add(multiply(y[1], square), y[0]));   // a b (a + b)^2 + a + b
  CHECK(calls == 1);
  CHECK(a.grad().data<double>()[0] == 5.0 * 64.0 + 2.0 * 15.0 * 8.0 + 1.0);
  CHECK(b.grad().data<double>()[0] == 3.0 * 64.0 + 2.0 * 15.0 * 8.0 + 1.0);
  CHECK_THROWS_WITH_AS(
      backward(y[1]),
      "backward: the graph of sum_and_product was freed by an earlier backward; run the forward pass again", Error);
}

TEST_CASE("record_several: the gradient of a result that nobody reads is undefined") {
  for (const size_t read : {0u, 1u}) {
    const Variable a = leaf({3.0}), b = leaf({5.0});
    backward(sum_and_product(a, b)[read]);
    CHECK(a.grad().data<double>()[0] == (read == 0 ? 1.0 : 5.0));
  }
  const GradientMode off(false);
  CHECK_FALSE(sum_and_product(leaf({1.0}), leaf({1.0}))[1].requires_grad());
}

TEST_CASE("a chain of operations with two results fits on the stack, run backward or dropped") {
  const int64_t before = Allocator::of(kCpu).stats().total_current;
  {
    const Variable x = leaf({1.0}), zero(zeros(Shape{1}, DType::f64));
    std::vector<Variable> y{x, x}, dropped{x, x};
    for (int i = 0; i < 200000; ++i) y = sum_and_product(y[0], zero);
    for (int i = 0; i < 200000; ++i) dropped = sum_and_product(add(dropped[0], dropped[1]), zero);
    backward(y[0]);
    CHECK(x.grad().data<double>()[0] == 1.0);
  }
  CHECK(Allocator::of(kCpu).stats().total_current == before);
}

TEST_CASE("no-gradient mode records nothing") {
  const Variable x = leaf({2.0});
  const GradientMode off(false);
  CHECK_FALSE(multiply(x, x).requires_grad());
  const GradientMode on(true);
  CHECK(multiply(x, x).requires_grad());
  CHECK_FALSE(multiply(x.detach(), x.detach()).requires_grad());
}

TEST_CASE("errors name the operation, what it needed and what it got") {
  const Variable x = leaf({2.0, 1.0});
  const Variable y = multiply(x, x);
  CHECK_THROWS_WITH_AS(backward(y), "backward: without a seed the root must have one element, got [2]", Error);
  CHECK_THROWS_WITH_AS(backward(y, ones(3)), "backward: seed must be f64 [2] on cpu like the root, got f64 [3] on cpu",
                       Error);
  backward(y, ones(2));
  CHECK_THROWS_WITH_AS(backward(y, ones(2)),
                       "backward: the graph of multiply was freed by an earlier backward; run the forward pass again",
                       Error);
  CHECK_THROWS_WITH_AS(y.grad(), "grad: only leaves keep a gradient, this is the result of multiply", Error);
  CHECK_THROWS_WITH_AS(x.detach().grad(), "grad: f64 [2] does not require a gradient", Error);
  CHECK_THROWS_WITH_AS(backward(x.detach(), ones(2)), "backward: the root [2] requires no gradient", Error);

  const auto wrong = [](const Tensor&, const Needs&) { return Grads{zeros(Shape{5}, DType::f64)}; };
  CHECK_THROWS_WITH_AS(backward(record("wrong", ones(1), {x}, wrong)),
                       "wrong: gradient of input 0 must be f64 [2], got f64 [5]", Error);
  const auto none = [](const Tensor&, const Needs&) { return Grads{}; };
  CHECK_THROWS_WITH_AS(backward(record("none", ones(1), {x}, none)), "none: backward returned 0 gradients for 1 inputs",
                       Error);
  CHECK_THROWS_WITH_AS(Variable(zeros(Shape{1}, DType::u8), true),
                       "Variable: only floating tensors have gradients, got u8", Error);
}

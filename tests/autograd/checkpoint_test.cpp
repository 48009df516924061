#include "autograd/checkpoint.h"

#include <doctest/doctest.h>

#include "tests/autograd/toy_ops.h"

using namespace lacuna;
using toy::add, toy::leaf, toy::multiply;

TEST_CASE("checkpoint: same value and gradients, of inputs and of captured parameters") {
  const auto run = [](bool recompute, int* calls) {
    const Variable x = leaf({3.0}), w = leaf({5.0});
    const auto block = [&](const Variable& h) {
      ++*calls;
      return add(multiply(h, w), h);
    };
    Variable h = multiply(x, x);
    for (int i = 0; i < 3; ++i) h = recompute ? checkpoint(block, h) : block(h);
    backward(h);
    return std::vector<double>{h.value().data<double>()[0], x.grad().data<double>()[0], w.grad().data<double>()[0]};
  };
  int plain_calls = 0, recomputed_calls = 0;
  CHECK(run(false, &plain_calls) == run(true, &recomputed_calls));
  CHECK(plain_calls == 3);
  CHECK(recomputed_calls == 6);
}

TEST_CASE("checkpoint: keeps nothing of the block but its inputs and result") {
  const Variable x = leaf(std::vector<double>(1 << 16, 1.0));
  const auto held = [] { return Allocator::of(kCpu).stats().total_current; };
  const int64_t before = held();
  const Variable y = checkpoint(
      [](const Variable& h) {
        Variable z = h;
        for (int i = 0; i < 8; ++i) z = multiply(z, h);
        return z;
      },
      x);
  CHECK(held() - before < 2 * (1 << 16) * 8);  // one tensor of the size of x, not eight
}

TEST_CASE("checkpoint: the forward pass builds no graph, the recomputation does") {
  std::vector<bool> recorded;
  const Variable x = leaf({3.0});
  backward(checkpoint(
      [&](const Variable& h) {
        const Variable y = multiply(h, h);
        recorded.push_back(y.requires_grad());
        return y;
      },
      x));
  CHECK(recorded == std::vector<bool>{false, true});
}

TEST_CASE("checkpoint: a long chain of them fits on the stack, run backward or dropped") {
  const Variable x = leaf({1.0}), zero(zeros(Shape{1}, DType::f64));
  Variable y = x, dropped = x;
  for (int i = 0; i < 100'000; ++i) {
    y = checkpoint([&](const Variable& h) { return add(h, zero); }, y);
    dropped = checkpoint([&](const Variable& h) { return add(h, zero); }, dropped);
  }
  backward(y);
  CHECK(x.grad().data<double>()[0] == 1.0);
}

TEST_CASE("checkpoint: parameters receive gradients when no input requires one") {
  const Variable x(full(Shape{1}, DType::f64, 7.0)), w = leaf({2.0});
  backward(checkpoint([&](const Variable& h) { return multiply(h, w); }, x));
  CHECK(w.grad().data<double>()[0] == 7.0);
}

TEST_CASE("checkpoint: what requires no gradient is no obstacle to what does") {
  const Variable x(full(Shape{1}, DType::f64, 7.0)), w = leaf({2.0});
  backward(add(w, checkpoint([](const Variable& h) { return multiply(h, h); }, x)));
  CHECK(w.grad().data<double>()[0] == 1.0);
}

TEST_CASE("checkpoint: records nothing in no-gradient mode") {
  const GradientMode off(false);
  CHECK_FALSE(checkpoint([](const Variable& h) { return multiply(h, h); }, leaf({2.0})).requires_grad());
}

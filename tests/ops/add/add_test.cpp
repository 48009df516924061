#include "ops/add/add.h"

#include "autograd/gradcheck.h"
#include "tests/support/expect_error.h"
#include "tests/support/tensors.h"

namespace lacuna::test {

TEST_CASE("add: the sum of each pair of elements") {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const Tensor a = random_tensor({3, 40'000}, dtype, 1), b = random_tensor({3, 40'000}, dtype, 2);
    const std::vector<double> y = to_vector<double>(to_dtype((Variable(a) + Variable(b)).value(), DType::f64));
    const std::vector<double> x0 = to_vector<double>(to_dtype(a, DType::f64)),
                              x1 = to_vector<double>(to_dtype(b, DType::f64));
    bool equal = true;
    for (size_t i = 0; i < y.size(); ++i)
      equal = equal && y[i] == (dtype == DType::f32 ? static_cast<float>(x0[i] + x1[i]) : x0[i] + x1[i]);
    CHECK(equal);
  }
}

TEST_CASE("add: gradients match finite differences, also of a sum with itself") {
  const Variable a = random_leaf({3, 7}, 1), b = random_leaf({3, 7}, 2);
  expect_gradients({a, b}, [&] { return a + b; });
  expect_gradients({a}, [&] { return a + a; });
}

TEST_CASE("add: names what does not fit") {
  const Variable a(zeros({2, 3}, DType::f32));
  CHECK(message_of([&] {
          add(a, Variable(zeros({3, 2}, DType::f32)));
        }) == "add: a and b must have one shape, got [2, 3] and [3, 2]");
  CHECK(message_of([&] {
          add(a, Variable(zeros({2, 3}, DType::f64)));
        }) == "add: all inputs must be alike, got f32 on cpu and f64 on cpu");
  const Variable bytes(zeros({2}, DType::u8));
  CHECK(message_of([&] { add(bytes, bytes); }) == "add: dtype must be floating, got u8");
}

}  // namespace lacuna::test

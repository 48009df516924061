#include "core/tensor.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "tests/support/expect_error.h"

using namespace lacuna;

namespace {

constexpr DType kAllDTypes[] = {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i64, DType::i32, DType::u8};

}  // namespace

TEST_CASE("Tensor: a default one is undefined, a new one has what was asked for") {
  CHECK_FALSE(Tensor().defined());
  for (const DType dtype : kAllDTypes) {
    const Tensor t = empty({2, 3}, dtype);
    CHECK(t.defined());
    CHECK(t.shape() == Shape{2, 3});
    CHECK(t.dtype() == dtype);
    CHECK(t.device() == kCpu);
    CHECK(t.rank() == 2);
    CHECK(t.dim(-1) == 3);
    CHECK(t.numel() == 6);
    CHECK(t.bytes() == 6 * size_of(dtype));
  }
  CHECK(empty({}, DType::f32).numel() == 1);
  CHECK(empty({0, 5}, DType::f32).numel() == 0);
  expect_error("size of [1152921504606846976, 4] overflows", [] { empty({int64_t{1} << 60, 4}, DType::f64); });
}

TEST_CASE("Tensor: from_vector and to_vector are row-major and inverse") {
  const std::vector<float> elements{0, 1, 2, 3, 4, 5};
  const Tensor t = from_vector(elements, {2, 3});
  CHECK(t.data<float>()[1 * 3 + 2] == 5.0f);
  CHECK(to_vector<float>(t) == elements);
  expect_error("from_vector: [2, 2] needs 4 elements, got 6", [&] { from_vector(elements, {2, 2}); });
  expect_error("asked for f64 elements of a tensor of f32", [&] { to_vector<double>(t); });
}

TEST_CASE("Tensor: handles, reshapes, slices and views share elements; clones do not") {
  const Tensor t = from_vector(std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, {4, 3});
  const Tensor handle = t, reshaped = t.reshape({2, 6}), rows = t.slice(1, 3), part = t.view(7, {2, 2}),
               copied = clone(t);
  CHECK(rows.shape() == Shape{2, 3});
  CHECK(to_vector<int32_t>(rows) == std::vector<int32_t>{3, 4, 5, 6, 7, 8});
  CHECK(to_vector<int32_t>(part) == std::vector<int32_t>{7, 8, 9, 10});
  CHECK(to_vector<int32_t>(part.slice(1, 2)) == std::vector<int32_t>{9, 10});

  t.data<int32_t>()[7] = 70;
  CHECK(handle.data<int32_t>()[7] == 70);
  CHECK(reshaped.data<int32_t>()[7] == 70);
  CHECK(rows.data<int32_t>()[4] == 70);
  CHECK(part.data<int32_t>()[0] == 70);
  CHECK(copied.data<int32_t>()[7] == 7);
}

TEST_CASE("Tensor: a view keeps the storage alive") {
  Tensor part;
  {
    const Tensor t = full({1000}, DType::f32, 3.0);
    part = t.slice(990, 1000);
  }
  CHECK(to_vector<float>(part) == std::vector<float>(10, 3.0f));
}

TEST_CASE("Tensor: slices and views at the edges, empty ones included") {
  const Tensor t = zeros({4, 3}, DType::f32), none = zeros({0, 3}, DType::f32);
  CHECK(t.slice(4, 4).shape() == Shape{0, 3});
  CHECK(t.slice(0, 4).raw() == t.raw());
  CHECK(none.slice(0, 0).shape() == Shape{0, 3});
  CHECK(none.reshape({7, 0}).numel() == 0);
  CHECK(t.view(12, {0}).numel() == 0);
  CHECK(t.view(11, {}).numel() == 1);

  expect_error("reshape: [4, 3] has 12 elements, [5] needs 5", [&] { t.reshape({5}); });
  expect_error("slice: rows [3, 5) do not exist in [4, 3]", [&] { t.slice(3, 5); });
  expect_error("slice: rows [-1, 2) do not exist", [&] { t.slice(-1, 2); });
  expect_error("slice: rows [3, 2) do not exist", [&] { t.slice(3, 2); });
  expect_error("slice: rows [0, 1) do not exist in []", [&] { t.view(0, {}).slice(0, 1); });
  expect_error("view: [2] at element 11 does not fit in [4, 3]", [&] { t.view(11, {2}); });
  expect_error("view: [1] at element -1 does not fit", [&] { t.view(-1, {1}); });
  expect_error("does not fit", [&] { t.view(INT64_MAX, {12}); });
  expect_error("does not fit its storage of 8 bytes",
               [] { Tensor(std::make_shared<Storage>(8, kCpu), 4, {2}, DType::f32); });
}

TEST_CASE("fill: rounds to the dtype, and refuses what an integer cannot hold") {
  for (const DType dtype : kAllDTypes) {
    const Tensor t = full({70'000}, dtype, 3.0);  // more than one grain
    int64_t wrong = 0;
    if (is_floating(dtype))
      for (const double x : to_vector<double>(to_dtype(t, DType::f64))) wrong += x != 3.0;
    else if (dtype == DType::i64)
      for (const int64_t x : to_vector<int64_t>(t)) wrong += x != 3;
    else if (dtype == DType::i32)
      for (const int32_t x : to_vector<int32_t>(t)) wrong += x != 3;
    else
      for (const uint8_t x : to_vector<uint8_t>(t)) wrong += x != 3;
    CHECK(wrong == 0);
  }
  CHECK(to_vector<bf16>(full({1}, DType::bf16, 1.0 + 0x1p-7 + 0x1p-9))[0].bits == 0x3f81);
  CHECK(to_vector<int64_t>(full({1}, DType::i64, -0x1p63))[0] == INT64_MIN);
  CHECK(to_vector<int32_t>(full({1}, DType::i32, 2147483647.0))[0] == 2147483647);
  CHECK(to_vector<int32_t>(full({1}, DType::i32, -1.75))[0] == -2);
  expect_error("fill: value must fit u8, got 256", [] { full({1}, DType::u8, 256); });
  expect_error("fill: value must fit u8, got -1", [] { full({1}, DType::u8, -1); });
  expect_error("fill: value must fit i64", [] { full({1}, DType::i64, 0x1p63); });
  expect_error("fill: value must fit i32, got nan",
               [] { full({1}, DType::i32, std::numeric_limits<double>::quiet_NaN()); });
}

TEST_CASE("copy: equal dtypes exactly, floating dtypes by rounding, integers never") {
  const std::vector<double> elements{0.0, -0.0, 1.0 / 3, -65504.0, 1e-7, 70000.0};
  const Tensor exact = from_vector(elements, {2, 3});
  const std::vector<float> narrow = to_vector<float>(to_dtype(exact, DType::f32));
  const std::vector<f16> half = to_vector<f16>(to_dtype(exact, DType::f16));
  const std::vector<bf16> brain = to_vector<bf16>(to_dtype(exact, DType::bf16));
  for (size_t i = 0; i < elements.size(); ++i) {
    const float x = static_cast<float>(elements[i]);
    CHECK(std::bit_cast<uint32_t>(narrow[i]) == std::bit_cast<uint32_t>(x));
    CHECK(half[i].bits == f16(x).bits);
    CHECK(brain[i].bits == bf16(x).bits);
  }
  const Tensor back = to_dtype(from_vector(brain, {2, 3}), DType::f16);  // between the 16-bit types
  CHECK(to_vector<f16>(back)[2].bits == f16(float(brain[2])).bits);

  CHECK(to_dtype(exact, DType::f64).raw() == exact.raw());
  const Tensor integers = from_vector(std::vector<int64_t>{INT64_MIN, INT64_MAX}, {2});
  CHECK(to_vector<int64_t>(clone(integers)) == to_vector<int64_t>(integers));
  expect_error("copy: cannot convert i64 to f32", [&] { to_dtype(integers, DType::f32); });
  expect_error("copy: cannot convert f64 to u8", [&] { to_dtype(exact, DType::u8); });
  expect_error("copy: shapes must agree, got [2, 3] and [3, 2]", [&] { copy(exact, empty({3, 2}, DType::f64)); });
}

TEST_CASE("copy: within one tensor, rows may move over each other") {
  const Tensor t = from_vector(std::vector<int32_t>{0, 1, 2, 3, 4}, {5});
  copy(t.slice(0, 4), t.slice(1, 5));
  CHECK(to_vector<int32_t>(t) == std::vector<int32_t>{0, 0, 1, 2, 3});
}

TEST_CASE("empty_like and zeros_like: shape and dtype of the model") {
  const Tensor model = full({3, 2}, DType::bf16, 1.0), zero = zeros_like(model);
  CHECK(empty_like(model).shape() == Shape{3, 2});
  CHECK(empty_like(model).dtype() == DType::bf16);
  CHECK(zero.dtype() == DType::bf16);
  for (const bf16 x : to_vector<bf16>(zero)) CHECK(x.bits == 0);
}

TEST_CASE("add_in_place: y += x for f32 and f64 alike") {
  const Tensor y = from_vector(std::vector<float>{1, 2, 3}, {3}), x = from_vector(std::vector<float>{10, 20, 30}, {3});
  add_in_place(y, x);
  CHECK(to_vector<float>(y) == std::vector<float>{11, 22, 33});
  CHECK(to_vector<float>(x) == std::vector<float>{10, 20, 30});
  const Tensor z = full({40'000}, DType::f64, 0.5);
  add_in_place(z, z);
  CHECK(to_vector<double>(z) == std::vector<double>(40'000, 1.0));

  expect_error("add_in_place: needs two tensors alike, got f32 [3] and f32 [1]",
               [&] { add_in_place(y, zeros({1}, DType::f32)); });
  expect_error("add_in_place: needs two tensors alike, got f32 [3] and f64 [3]",
               [&] { add_in_place(y, zeros({3}, DType::f64)); });
  expect_error("add_in_place: dtype must be floating, got i32",
               [] { add_in_place(zeros({3}, DType::i32), zeros({3}, DType::i32)); });
}

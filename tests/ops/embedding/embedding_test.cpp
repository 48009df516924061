#include "ops/embedding/embedding.h"

#include "autograd/gradcheck.h"
#include "tests/support/expect_error.h"
#include "tests/support/tensors.h"

namespace lacuna::test {
namespace {

/// token, the position tables, start.
std::vector<Tensor> random_tables(int64_t n_vocab, const std::vector<int64_t>& extents, int64_t d_model, DType dtype) {
  std::vector<Tensor> tables{random_tensor({n_vocab, d_model}, dtype, 1)};
  for (const int64_t extent : extents) tables.push_back(random_tensor({extent, d_model}, dtype, 2 + tables.size()));
  tables.push_back(random_tensor({d_model}, dtype, 2));
  return tables;
}

Function run(const Tensor& tokens) {
  return [tokens](const std::vector<Variable>& in) {
    return embedding(tokens, in.front(), {in.begin() + 1, in.end() - 1}, in.back());
  };
}

/// The header's formula, with coordinates counted up like an odometer.
template <class T>
std::vector<Tensor> reference(const Tensor& tokens, const std::vector<Tensor>& in, const Tensor& dh_tensor) {
  const int64_t batch = tokens.dim(0), n_ctx = tokens.dim(1), d = in[0].dim(1);
  std::vector<Tensor> out{empty_like(dh_tensor)};
  for (const Tensor& table : in) out.push_back(zeros_like(table));
  const size_t n_tables = in.size() - 2;
  for (int64_t b = 0; b < batch; ++b) {
    std::vector<int64_t> at(n_tables, 0);  // the coordinates of position t - 1
    for (int64_t t = 0; t < n_ctx; ++t) {
      T* const h = out[0].data<T>() + (b * n_ctx + t) * d;
      const T* const dh = dh_tensor.data<T>() + (b * n_ctx + t) * d;
      if (t == 0) {
        for (int64_t j = 0; j < d; ++j) h[j] = in.back().data<T>()[j];
        for (int64_t j = 0; j < d; ++j) out.back().data<T>()[j] += dh[j];
        continue;
      }
      const int64_t token = tokens.data<uint8_t>()[b * n_ctx + t - 1];
      for (int64_t j = 0; j < d; ++j) {
        h[j] = in[0].data<T>()[token * d + j];
        out[1].data<T>()[token * d + j] += dh[j];
        for (size_t p = 0; p < n_tables; ++p) {
          h[j] += in[1 + p].data<T>()[at[p] * d + j];
          out[2 + p].data<T>()[at[p] * d + j] += dh[j];
        }
      }
      for (size_t p = n_tables; p-- > 0;) {
        if (++at[p] < in[1 + p].dim(0)) break;
        at[p] = 0;
      }
    }
  }
  return out;
}

const std::vector<std::vector<int64_t>> kExtents{{24}, {4, 6}, {4, 2, 3}, {5, 7}};

}  // namespace

TEST_CASE("embedding: f64 is the formula") {
  for (const auto& extents : kExtents)
    for (const int64_t n_ctx : {1, 2, 24}) {
      const Tensor tokens = random_tokens({3, n_ctx}, 11, 1), dh = random_tensor({3, n_ctx, 5}, DType::f64, 9);
      const std::vector<Tensor> in = random_tables(11, extents, 5, DType::f64);
      expect_close(value_and_gradients(run(tokens), in, dh), reference<double>(tokens, in, dh), 1e-14);
    }
}

TEST_CASE("embedding: f32 is as accurate as the plain loop") {
  const Tensor tokens = random_tokens({2, 3000}, 256, 1), dh = random_tensor({2, 3000, 33}, DType::f32, 9);
  const std::vector<Tensor> in = random_tables(256, {32, 32, 3}, 33, DType::f32);
  expect_as_accurate(value_and_gradients(run(tokens), in, dh), reference<float>(tokens, in, dh),
                     reference<double>(tokens, to_dtype(in, DType::f64), to_dtype(dh, DType::f64)));
}

TEST_CASE("embedding: the vector at t knows the token and the place before it, and nothing at or after t") {
  const std::vector<Tensor> in = random_tables(4, {2, 3}, 2, DType::f64);
  const std::vector<Variable> tables{Variable(in[1]), Variable(in[2])};
  const auto h = [&](std::vector<uint8_t> x) {
    return embedding(from_vector(x, {1, 6}), Variable(in[0]), tables, Variable(in[3])).value();
  };
  const Tensor base = h({0, 1, 2, 3, 0, 1}), changed = h({0, 1, 3, 3, 0, 1});
  for (int64_t t = 0; t < 6; ++t) {
    const bool same = same_bits(base.view(2 * t, {2}), changed.view(2 * t, {2}));
    CHECK(same == (t != 3));
  }
  const double* const row = base.data<double>() + 2 * 5;  // position 4 is (1, 1), its token 0
  for (int64_t j : {0, 1})
    CHECK(row[j] == in[0].data<double>()[j] + in[1].data<double>()[2 + j] + in[2].data<double>()[2 + j]);
}

TEST_CASE("embedding: gradients match finite differences") {
  const Tensor tokens = random_tokens({2, 6}, 4, 1);
  std::vector<Variable> in;
  for (const Tensor& t : random_tables(4, {2, 3}, 3, DType::f64)) in.emplace_back(t, /*requires_grad=*/true);
  expect_gradients(in, [&] { return run(tokens)(in); });
}

TEST_CASE("embedding: adds to the buffers that gradients view, skips what nobody wants") {
  const Tensor tokens = random_tokens({2, 6}, 4, 1), dh = random_tensor({2, 6, 3}, DType::f64, 9);
  const std::vector<Tensor> in = random_tables(4, {6}, 3, DType::f64);
  const std::vector<Tensor> fresh = value_and_gradients(run(tokens), in, dh);
  const Tensor buffer = full({4 * 3}, DType::f64, 10.0);
  const Variable token(in[0], buffer.view(0, {4, 3})), position(in[1]), start(in[2], /*requires_grad=*/true);
  backward(embedding(tokens, token, {position}, start), dh);
  const Tensor expected = full({4, 3}, DType::f64, 10.0);
  add_in_place(expected, fresh[1]);
  expect_close({token.grad(), start.grad()}, {expected, fresh[3]}, 1e-14);
  CHECK(token.grad().raw() == buffer.raw());
  CHECK(!position.has_grad());
}

TEST_CASE("embedding: the same bits on any number of threads") {
  const Tensor tokens = random_tokens({3, 900}, 7, 1), dh = random_tensor({3, 900, 20}, DType::f32, 9);
  const std::vector<Tensor> in = random_tables(7, {30, 30}, 20, DType::f32);
  expect_same_bits_on_any_threads([&] { return value_and_gradients(run(tokens), in, dh); });
}

TEST_CASE("embedding: names what does not fit") {
  const auto f32 = [](const Shape& shape) { return Variable(zeros(shape, DType::f32)); };
  const Variable token = f32({4, 3}), start = f32({3}), position = f32({6, 3});
  const Tensor tokens = from_vector<uint8_t>({0, 1, 2, 3, 4, 0}, {2, 3});
  CHECK(message_of([&] { embedding(tokens, token, {position}, start); }) ==
        "embedding: tokens must be below n_vocab 4, got 4 at [1, 1]");
  const Tensor good = zeros({2, 6}, DType::u8);
  CHECK(message_of([&] { embedding(zeros({6}, DType::u8), token, {position}, start); }) ==
        "embedding: tokens must be [batch, n_ctx], got [6]");
  CHECK(message_of([&] {
          embedding(zeros({2, 6}, DType::i32), token, {position}, start);
        }) == "embedding: tokens must be u8, got i32");
  CHECK(message_of([&] { embedding(good, token, {}, start); }) == "embedding: needs at least one position table");
  CHECK(message_of([&] {
          embedding(good, token, {f32({5, 3})}, start);
        }) == "embedding: position tables have 5 places for n_ctx 6");
  CHECK(message_of([&] {
          embedding(good, token, {f32({6, 2})}, start);
        }) == "embedding: position tables must be [extent, 3], got [6, 2]");
  CHECK(message_of([&] { embedding(good, token, {position}, f32({4})); }) ==
        "embedding: start must be [3] like the rows of token, got [4]");
  CHECK(message_of([&] {
          embedding(good, token, {Variable(zeros({6, 3}, DType::f64))}, start);
        }) == "embedding: all inputs must be alike, got f32 on cpu and f64 on cpu");
}

}  // namespace lacuna::test

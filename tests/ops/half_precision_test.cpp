// Every operation in bf16 and f16 against itself in f64 on the same numbers: what is 16 bits wide may be off by one
// rounding, what is f32 (gradients of parameters, the loss) by the errors of f32 sums.

#include "ops/add/add.h"
#include "ops/dropout/dropout.h"
#include "ops/embedding/embedding.h"
#include "ops/gelu/gelu.h"
#include "ops/layer_norm/layer_norm.h"
#include "ops/matmul/matmul.h"
#include "ops/softmax_cross_entropy/softmax_cross_entropy.h"
#include "tests/support/expect_error.h"
#include "tests/support/tensors.h"

namespace lacuna::test {
namespace {

constexpr int64_t kRows = 70, kWidth = 33, kOut = 48;

struct Input {
  Shape shape;
  bool parameter = false;
};

struct Case {
  const char* name;
  std::vector<Input> inputs;
  Function run;
  Shape result;
};

/// `dtype` is that of activations.
std::vector<Case> cases(DType dtype) {
  const Tensor targets = random_tokens({kRows}, kWidth, 9), tokens = random_tokens({2, 35}, 19, 9);
  const Run training{.training = true, .seed = 3, .step = 4};
  const Shape x{kRows, kWidth};
  return {
      {"add", {{x}, {x}}, [](const auto& in) { return in[0] + in[1]; }, x},
      {"gelu", {{x}}, [](const auto& in) { return gelu(in[0]); }, x},
      {"dropout", {{x}}, [=](const auto& in) { return dropout(in[0], 0.3f, 5, training); }, x},
      {"layer_norm",
       {{x}, {{kWidth}, true}, {{kWidth}, true}},
       [](const auto& in) { return layer_norm(in[0], in[1], in[2]); },
       x},
      {"linear",
       {{x}, {{kOut, kWidth}, true}, {{kOut}, true}},
       [](const auto& in) { return linear(in[0], in[1], in[2]); },
       {kRows, kOut}},
      {"linear, wide",
       {{{kRows, 256}}, {{320, 256}, true}, {{320}, true}},
       [](const auto& in) { return linear(in[0], in[1], in[2]); },
       {kRows, 320}},
      {"linear, few rows",
       {{{3, kWidth}}, {{kOut, kWidth}, true}},
       [](const auto& in) { return linear(in[0], in[1]); },
       {3, kOut}},
      {"matmul", {{x}, {{kWidth, kOut}}}, [](const auto& in) { return matmul(in[0], in[1]); }, {kRows, kOut}},
      {"embedding",
       {{{19, 8}, true}, {{5, 8}, true}, {{7, 8}, true}, {{8}, true}},
       [=](const auto& in) {
         return embedding(tokens, in[0], {in[1], in[2]}, in[3], dtype);
       },
       {2, 35, 8}},
      {"softmax_cross_entropy", {{x}}, [=](const auto& in) { return softmax_cross_entropy(in[0], targets); }, {}},
  };
}

}  // namespace

TEST_CASE("bf16 and f16: every operation is the f64 one but for one rounding") {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    const std::vector<Case> half = cases(dtype), exact = cases(DType::f64);
    for (size_t c = 0; c < half.size(); ++c) {
      CAPTURE(half[c].name);
      CAPTURE(concat(dtype));
      std::vector<Tensor> inputs;
      for (const Input& input : half[c].inputs) {
        const Tensor x = random_tensor(input.shape, dtype, 1 + inputs.size());
        inputs.push_back(input.parameter ? lacuna::to_dtype(x, DType::f32) : x);
      }
      const bool is_loss = half[c].result.rank() == 0;
      const Tensor dy = random_tensor(half[c].result, is_loss ? DType::f32 : dtype, 8);
      const std::vector<Tensor> got = value_and_gradients(half[c].run, inputs, dy);
      const std::vector<Tensor> expected =
          value_and_gradients(exact[c].run, to_dtype(inputs, DType::f64), lacuna::to_dtype(dy, DType::f64));
      CHECK(got[0].dtype() == dy.dtype());
      for (size_t i = 0; i < got.size(); ++i) {
        CAPTURE(i);
        if (i > 0) CHECK(got[i].dtype() == inputs[i - 1].dtype());
        const double rounding = got[i].dtype() == DType::bf16 ? 0x1p-8 : got[i].dtype() == DType::f16 ? 0x1p-11 : 0.0;
        const double f32_sums = 0x1p-24 * kRows;
        const double smallest = got[i].dtype() == DType::f16 ? 0x1p-25 : 0.0;  // half the distance of subnormal f16
        CHECK(max_distance(got[i], expected[i]) <= (rounding + f32_sums) * max_abs(expected[i]) + smallest);
      }
    }
  }
}

TEST_CASE("bf16 and f16: the gradient of a weight is added into its f32 buffer") {
  const Tensor x = random_tensor({kRows, kWidth}, DType::bf16, 1), w = random_tensor({kOut, kWidth}, DType::f32, 2);
  const Tensor dy = random_tensor({kRows, kOut}, DType::bf16, 3);
  const Tensor buffer = full(w.shape(), DType::f32, 0.5);
  backward(linear(Variable(x), Variable(w, buffer)), dy);
  const Tensor alone = value_and_gradients([](const auto& in) { return linear(in[0], in[1]); }, {x, w}, dy)[2];
  CHECK(max_distance(buffer, sum_of(alone, full(w.shape(), DType::f32, 0.5))) <= 0x1p-20 * max_abs(alone));
}

TEST_CASE("bf16 and f16: parameters beside them must be f32") {
  const Variable x(zeros({2, 4}, DType::bf16)), half(zeros({4}, DType::bf16)), w(zeros({4, 4}, DType::f32));
  CHECK(message_of([&] { layer_norm(x, half, half); }) ==
        "layer_norm: parameters must be f32 on cpu for x of bf16, got bf16 on cpu");
  CHECK(message_of([&] { linear(x, w, half); }) ==
        "linear: parameters must be f32 on cpu for x of bf16, got bf16 on cpu");
  CHECK(message_of([&] {
          embedding(zeros({1, 4}, DType::u8), Variable(zeros({4, 4}, DType::f64)),
                    {Variable(zeros({4, 4}, DType::f64))}, Variable(zeros({4}, DType::f64)), DType::f16);
        }) == "embedding: tables for h of f16 must be f32, got f64");
}

}  // namespace lacuna::test

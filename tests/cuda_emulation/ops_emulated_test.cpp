// Every operation on the emulated GPU, or on a real one, against the f64 loops of the CPU: as accurate as the CPU's f32
// loop, plus one rounding to the dtype of the result.

#include <limits>

#include "core/dispatch.h"
#include "ops/add/add.h"
#include "ops/add_dropout_layer_norm/add_dropout_layer_norm.h"
#include "ops/categorical/categorical.h"
#include "ops/dropout/dropout.h"
#include "ops/embedding/embedding.h"
#include "ops/embedding/embedding_kernels.h"
#include "ops/gelu/gelu.h"
#include "ops/layer_norm/layer_norm.h"
#include "ops/matmul/matmul.h"
#include "ops/softmax_cross_entropy/softmax_cross_entropy.h"
#include "ops/softmax_cross_entropy/softmax_cross_entropy_kernels.h"
#include "ops/sparse_attention/sparse_attention.h"
#include "tests/cuda_emulation/sanitizers.h"
#include "tests/support/expect_error.h"
#include "tests/support/tensors.h"

namespace lacuna::test {
namespace {

using emulation::under_tsan;  // there the emulator takes some hundred times as long

const std::vector<DType> kDTypes =
    under_tsan() ? std::vector<DType>{DType::bf16} : std::vector<DType>{DType::f32, DType::bf16, DType::f16};

double unit_roundoff(DType dtype) { return dtype == DType::bf16 ? 0x1p-8 : dtype == DType::f16 ? 0x1p-11 : 0x1p-24; }

std::vector<Tensor> to_device(const std::vector<Tensor>& tensors, Device device) {
  std::vector<Tensor> moved;
  for (const Tensor& t : tensors) moved.push_back(lacuna::to_device(t, device));
  return moved;
}

/// Runs fn and its gradients on the GPU with the first `activations` of `inputs` and dy in `dtype` and the parameters
/// after them in f32, and compares. `intermediate` is the largest number inside the computation, in f32 roundings of
/// which results may differ where they nearly cancel.
void expect_right_on_gpu(const Function& fn, std::vector<Tensor> inputs, size_t activations, const Tensor& dy_any,
                         DType dtype, double intermediate = 0.0) {
  CAPTURE(name_of(dtype));
  for (Tensor& t : inputs) t = lacuna::to_dtype(lacuna::to_dtype(t, dtype), DType::f64);  // all see the same numbers
  const bool dy_is_activation = dy_any.rank() > 0;
  const DType dy_dtype = dy_is_activation ? dtype : DType::f32;
  const Tensor dy = lacuna::to_dtype(lacuna::to_dtype(dy_any, dy_dtype), DType::f64);

  std::vector<Tensor> on_gpu;
  for (size_t i = 0; i < inputs.size(); ++i)
    on_gpu.push_back(lacuna::to_dtype(inputs[i], i < activations ? dtype : DType::f32));
  const std::vector<Tensor> gpu = to_device(
      value_and_gradients(fn, to_device(on_gpu, kCuda), lacuna::to_device(lacuna::to_dtype(dy, dy_dtype), kCuda)),
      kCpu);
  const std::vector<Tensor> plain =
      value_and_gradients(fn, to_dtype(inputs, DType::f32), lacuna::to_dtype(dy, DType::f32));
  const std::vector<Tensor> exact = value_and_gradients(fn, inputs, dy);

  REQUIRE(gpu.size() == exact.size());
  for (size_t i = 0; i < gpu.size(); ++i) {
    CAPTURE(i);
    CAPTURE(concat(exact[i].shape()));
    const double largest = max_abs(exact[i]);
    const double allowed = 2.0 * max_distance(plain[i], exact[i]) + unit_roundoff(gpu[i].dtype()) * largest +
                           4.0 * 0x1p-24 * std::max(largest, intermediate);
    CHECK(max_distance(gpu[i], exact[i]) <= allowed);
  }
}

/// Shapes around the eight elements of a thread, the 32 lanes of a warp and the 256 columns of a pass.
const std::vector<Shape> kRows = under_tsan()
                                     ? std::vector<Shape>{{3, 31}, {2, 264}, {70, 7}}
                                     : std::vector<Shape>{{1, 2}, {3, 31}, {5, 32}, {9, 256}, {2, 264}, {130, 7}};

TEST_CASE("gpu: gelu and add") {
  for (const DType dtype : kDTypes)
    for (const Shape& shape : kRows) {
      const Tensor x = random_tensor(shape, DType::f64, 1, 3.0), b = random_tensor(shape, DType::f64, 2);
      const Tensor dy = random_tensor(shape, DType::f64, 3);
      expect_right_on_gpu([](const auto& in) { return gelu(in[0]); }, {x}, 1, dy, dtype, 3.0);
      expect_right_on_gpu([](const auto& in) { return in[0] + in[1]; }, {x, b}, 2, dy, dtype, 3.0);
    }
}

TEST_CASE("gpu: gelu of large arguments stays finite") {
  const Tensor x = from_vector<float>({-1e30f, -200.0f, 0.0f, 200.0f, 1e30f}, {5});
  const Tensor y = gelu(Variable(to_device(x, kCuda))).value();
  CHECK(to_vector<float>(y) == std::vector<float>{-0.0f, -0.0f, 0.0f, 200.0f, 1e30f});
}

TEST_CASE("gpu: layer_norm") {
  for (const DType dtype : kDTypes)
    for (const Shape& shape : kRows) {
      const Shape cols{shape.dim(-1)};
      const std::vector<Tensor> in{random_tensor(shape, DType::f64, 1, 2.0, 1.0), random_tensor(cols, DType::f64, 2),
                                   random_tensor(cols, DType::f64, 3)};
      // Two columns of nearly equal numbers have a large 1 / std.
      expect_right_on_gpu([](const auto& v) { return layer_norm(v[0], v[1], v[2], 1e-2f); }, in, 1,
                          random_tensor(shape, DType::f64, 4), dtype, 100.0);
    }
}

TEST_CASE("gpu: add_dropout_layer_norm") {
  const Run run{.training = true, .seed = 7, .step = 3, .first_sample = 5};
  for (const DType dtype : kDTypes)
    for (const Shape& shape : {Shape{3, 5, 31}, Shape{2, 3, 264}, Shape{70, 8}}) {
      const Shape cols{shape.dim(-1)};
      const std::vector<Tensor> in{random_tensor(shape, DType::f64, 1, 2.0), random_tensor(shape, DType::f64, 2),
                                   random_tensor(cols, DType::f64, 3), random_tensor(cols, DType::f64, 4)};
      const Tensor dy = random_tensor(shape, DType::f64, 5);
      for (const float rate : {0.0f, 0.3f}) {
        if (under_tsan() && rate == 0.0f) continue;
        CAPTURE(concat(shape, ' ', rate));
        // The two gradients differ: that of the sum is dropped out by a mask of its own. Three roundings of it, of the
        // norm and of their sum, and as many of the gradients, reach a result.
        const auto both = [&](const auto& v) {
          const SumAndNorm y = add_dropout_layer_norm(v[0], v[1], rate, 9, run, v[2], v[3], 1e-2f);
          return add_dropout(y.norm, y.sum, 0.5f, 10, run);
        };
        const double rounded = dtype == DType::f32 ? 0.0 : 3.0 * unit_roundoff(dtype) * 0x1p22;  // in f32 roundings
        expect_right_on_gpu(both, in, 2, dy, dtype, 100.0 + rounded * 10.0);
      }
    }
}

TEST_CASE("gpu: linear, with and without bias, and matmul") {
  for (const DType dtype : kDTypes)
    for (const auto& [rows, d_in, d_out] : {std::array<int64_t, 3>{1, 1, 1}, {5, 7, 3}, {300, 9, 34}}) {
      if (under_tsan() && rows == 1) continue;
      const Tensor x = random_tensor({rows, d_in}, DType::f64, 1), w = random_tensor({d_out, d_in}, DType::f64, 2),
                   b = random_tensor({d_out}, DType::f64, 3), dy = random_tensor({rows, d_out}, DType::f64, 4);
      expect_right_on_gpu([](const auto& in) { return linear(in[0], in[1], in[2]); }, {x, w, b}, 1, dy, dtype, 10.0);
      expect_right_on_gpu([](const auto& in) { return linear(in[0], in[1]); }, {x, w}, 1, dy, dtype, 10.0);
    }
  for (const DType dtype : kDTypes)
    expect_right_on_gpu([](const auto& in) { return matmul(in[0], in[1]); },
                        {random_tensor({5, 7}, DType::f64, 1), random_tensor({7, 3}, DType::f64, 2)}, 2,
                        random_tensor({5, 3}, DType::f64, 3), dtype, 10.0);
}

TEST_CASE("gpu: the gradient of a weight is added to its buffer in f32") {
  for (const DType dtype : kDTypes) {
    const Tensor x = random_tensor({5, 7}, dtype, 1), dy = random_tensor({5, 3}, dtype, 2);
    const Tensor w = random_tensor({3, 7}, DType::f32, 3), before = random_tensor({3, 7}, DType::f32, 4);
    const Tensor buffer = to_device(clone(before), kCuda);
    const Variable weight(to_device(w, kCuda), buffer);
    backward(linear(Variable(to_device(x, kCuda)), weight), to_device(dy, kCuda));

    const Tensor exact = to_dtype(before, DType::f64);
    const std::vector<double> a = to_vector<double>(to_dtype(dy, DType::f64)),
                              b = to_vector<double>(to_dtype(x, DType::f64));
    for (int64_t i = 0; i < 3; ++i)
      for (int64_t j = 0; j < 7; ++j)
        for (int64_t r = 0; r < 5; ++r)
          exact.data<double>()[i * 7 + j] += a[static_cast<size_t>(r * 3 + i)] * b[static_cast<size_t>(r * 7 + j)];
    CHECK(max_distance(to_device(buffer, kCpu), exact) <= 6.0 * 0x1p-24 * 10.0);
  }
}

TEST_CASE("gpu: dropout draws the mask of the CPU, bit for bit") {
  const Run run{.training = true, .seed = 7, .step = 3, .first_sample = 5};
  for (const DType dtype : kDTypes)
    for (const Shape& shape : {Shape{1, 1}, Shape{3, 31}, Shape{2, 8, 4}, Shape{2, 3000}}) {
      CAPTURE(concat(shape, ' ', dtype));
      const Tensor x = random_tensor(shape, dtype, 1), dy = random_tensor(shape, dtype, 2);
      const auto fn = [&](const auto& in) { return dropout(in[0], 0.3f, 9, run); };
      const std::vector<Tensor> on_cpu = value_and_gradients(fn, {to_dtype(x, DType::f32)}, to_dtype(dy, DType::f32));
      const std::vector<Tensor> on_gpu = value_and_gradients(fn, {to_device(x, kCuda)}, to_device(dy, kCuda));
      expect_same_bits(to_device(on_gpu, kCpu), to_dtype(on_cpu, dtype));
    }
}

TEST_CASE("gpu: softmax_cross_entropy, its gradient in the memory of the logits") {
  for (const DType dtype : kDTypes)
    for (const auto& [rows, n_vocab] : {std::array<int64_t, 2>{1, 1}, {3, 5}, {9, 256}, {300, 33}}) {
      if (under_tsan() && rows > 9) continue;
      const Tensor targets = random_tokens({rows}, n_vocab, 2);
      const auto fn = [&](const auto& in) {
        return softmax_cross_entropy(in[0], lacuna::to_device(targets, in[0].device()));
      };
      expect_right_on_gpu(fn, {random_tensor({rows, n_vocab}, DType::f64, 1, 5.0)}, 1, full({}, DType::f64, 0.75),
                          dtype, 20.0);
    }
  // 1000 apart: only exp(z - max) does not overflow.
  const Tensor z = from_vector<float>({1000.0f, 0.0f}, {1, 2}), target = from_vector<uint8_t>({1}, {1});
  CHECK(item(softmax_cross_entropy(Variable(to_device(z, kCuda)), to_device(target, kCuda)).value()) == 1000.0);
}

TEST_CASE("gpu: a token out of range gives a loss that is no number") {
  const Tensor target = to_device(from_vector<uint8_t>({7}, {1}), kCuda);
  const Variable z(to_device(random_tensor({1, 5}, DType::f32, 1), kCuda));
  CHECK(std::isnan(item(softmax_cross_entropy(z, target).value())));
}

TEST_CASE("gpu: embedding") {
  // The last in two chunks of rows.
  for (const auto& [batch, n_ctx, d] : {std::array<int64_t, 3>{1, 1, 1}, {2, 12, 5}, {3, 700, 33}, {9, 460, 2}}) {
    if (under_tsan() && n_ctx > 12) continue;
    const Tensor tokens = random_tokens({batch, n_ctx}, 11, 1);
    const int64_t rows = (n_ctx + 3) / 4;
    const std::vector<Tensor> tables{random_tensor({11, d}, DType::f64, 2), random_tensor({rows, d}, DType::f64, 3),
                                     random_tensor({4, d}, DType::f64, 4), random_tensor({d}, DType::f64, 5)};
    for (const DType dtype : kDTypes)
      expect_right_on_gpu(
          [&](const auto& in) {
            const Device device = in[0].device();
            return embedding(lacuna::to_device(tokens, device), in[0], {in[1], in[2]}, in[3],
                             device == kCpu ? in[0].dtype() : dtype);
          },
          tables, 0, random_tensor({batch, n_ctx, d}, DType::f64, 6), dtype,
          1.0 + 0.03 * static_cast<double>(batch * n_ctx));  // a bucket sums up to a quarter of the rows, one by one
  }
}

TEST_CASE("gpu: the gradient of embedding in two chunks of rows") {
  std::vector<float> numbers(2050 * 2 * 3);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i % 13);
  const Tensor tokens = random_tokens({2050, 2}, 11, 1), dh = from_vector(numbers, {2050, 2, 3});
  const auto gradients = [&](Device device) {
    const auto table = [&](int64_t rows) { return zeros({rows, 3}, DType::f32, device); };
    const std::vector<Tensor> all{table(11), table(1), table(4), table(1)}, position{all[1], all[2]};
    const std::vector<int64_t> extents{1, 4};
    LACUNA_DISPATCH(device, embedding_backward, lacuna::to_device(dh, device), lacuna::to_device(tokens, device),
                    extents, all[0], position, all[3]);
    return to_device(all, kCpu);
  };
  expect_same_bits(gradients(kCuda), gradients(kCpu));  // sums of small integers are exact
}

TEST_CASE("gpu: a position is embedded and drawn as on the CPU; rows of logits that are not finite are found") {
  const Tensor token = random_tensor({11, 5}, DType::f32, 1), places = random_tensor({4, 5}, DType::f32, 2),
               start = random_tensor({5}, DType::f32, 3), position = full({1}, DType::i64, 2),
               prompt = zeros({1}, DType::u8);
  Tensor logits = random_tensor({3, 11}, DType::f32, 4);
  for (const int64_t row : {0, 2}) logits.data<float>()[11 * row + 4] = row == 0 ? NAN : INFINITY;
  const auto step = [&](Device device) {
    const auto on = [&](const Tensor& t) { return lacuna::to_device(t, device); };
    const Tensor tokens = on(zeros({3, 4}, DType::u8)), previous = on(random_tokens({3}, 11, 5)),
                 finite = on(full({3}, DType::u8, 1));
    const Tensor h = embedding_at(previous, on(position), on(token), {on(places)}, on(start));
    draw_tokens(on(logits), 1.0, Rng(1, RandomPurpose::sampling), on(position), on(prompt), tokens, previous, finite);
    CHECK(to_vector<uint8_t>(finite) == std::vector<uint8_t>{0, 1, 0});
    return to_device({h, tokens.slice(1, 2), previous.slice(1, 2)}, kCpu);
  };
  expect_same_bits(step(kCuda), step(kCpu));
}

// CUDA refuses a launch of no blocks.
TEST_CASE("gpu: no rows give no rows, and gradients of parameters that are 0") {
  const auto on = [](Device device, const std::vector<Shape>& shapes, DType dtype, const Function& fn) {
    std::vector<Tensor> in;
    std::vector<Variable> leaves;
    for (const Shape& shape : shapes) {  // the first is an activation, the others are parameters
      in.push_back(full(shape, in.empty() ? dtype : accumulation_dtype(dtype), 1.0, device));
      leaves.emplace_back(in.back());
    }
    const Tensor y = fn(leaves).value();
    return to_device(value_and_gradients(fn, in, full(y.shape(), y.dtype(), 1.0, device)), kCpu);
  };
  const Run run{.training = true, .seed = 7};
  const auto attention = [](const char* pattern) {
    return [layer = parse_attention(pattern).layers[0]](const auto& v) {
      return sparse_attention(v[0], v[0], v[0], layer, 1);
    };
  };
  const std::vector<std::pair<std::vector<Shape>, Function>> cases{
      {{{0, 4}}, [](const auto& v) { return gelu(v[0]); }},
      {{{0, 4}}, [](const auto& v) { return v[0] + v[0]; }},
      {{{0, 3, 4}}, [&](const auto& v) { return dropout(v[0], 0.3f, 1, run); }},
      {{{0, 4}, {4}, {4}}, [](const auto& v) { return layer_norm(v[0], v[1], v[2]); }},
      {{{0, 3, 4}, {4}, {4}},
       [&](const auto& v) { return add_dropout_layer_norm(v[0], v[0], 0.3f, 1, run, v[1], v[2]).norm; }},
      {{{0, 4}, {5, 4}, {5}}, [](const auto& v) { return linear(v[0], v[1], v[2]); }},
      {{{0, 3, 8}}, attention("local(window=2)")},
      {{{0, 3, 8}}, attention("column(stride=2)")},
      {{{2, 0, 8}}, attention("dense")},
      {{{0, 3, 4}, {5, 4}, {3, 4}, {4}},
       [](const auto& v) {
         return embedding(zeros({0, 3}, DType::u8, v[0].device()), v[1], {v[2]}, v[3], v[0].dtype()) + v[0];
       }},
  };
  for (const DType dtype : {DType::f32, DType::bf16})
    for (size_t i = 0; i < cases.size(); ++i) {
      CAPTURE(i);
      const auto& [shapes, fn] = cases[i];
      expect_same_bits(on(kCuda, shapes, dtype, fn), on(kCpu, shapes, dtype, fn));
    }

  const auto none = [](const Shape& shape, DType dtype = DType::f32) { return zeros(shape, dtype, kCuda); };
  const Tensor tokens = none({0}, DType::u8), weight = none({4, 4});
  CHECK(cross_entropy_per_row(none({0, 4}), tokens).numel() == 0);
  gpu::softmax_cross_entropy_backward(current_stream(kCuda), none({}), none({0, 4}), tokens, none({0}), none({0, 4}));
  CHECK(linear_rows(none({0, 4}), Variable(weight), {}).numel() == 0);
  CHECK(embedding_at(tokens, none({1}, DType::i64), weight, {weight}, none({4})).numel() == 0);
  draw_tokens(none({0, 4}), 1.0, Rng(1, RandomPurpose::sampling), full({1}, DType::i64, 1, kCuda), tokens,
              none({0, 3}, DType::u8), tokens, full({1}, DType::u8, 1, kCuda));
  synchronize(kCuda);
}

TEST_CASE("gpu: more rows than a launch has blocks for are refused with the operation's name") {
  const Variable weight(zeros({1, 1}, DType::f32, kCuda));
  expect_error("linear_rows: too many rows for one launch: 65536 blocks of them", [&] {
    linear_rows(zeros({8 * 65535 + 1, 1}, DType::f32, kCuda), weight, {});
  });
}

TEST_CASE("gpu: the same bits in every run" * doctest::skip(under_tsan())) {
  const auto run = [] {
    const Tensor x = random_tensor({600, 40}, DType::bf16, 1), dy = random_tensor({600, 40}, DType::bf16, 2);
    const Tensor gain = random_tensor({40}, DType::f32, 3), bias = random_tensor({40}, DType::f32, 4);
    return to_device(value_and_gradients([](const auto& v) { return layer_norm(v[0], v[1], v[2]); },
                                         to_device(std::vector<Tensor>{x, gain, bias}, kCuda), to_device(dy, kCuda)),
                     kCpu);
  };
  expect_same_bits(run(), run());
}

TEST_CASE("gpu: mixed devices and dtypes are refused") {
  const Variable on_cpu(zeros({2, 4}, DType::f32)), on_gpu(zeros({2, 4}, DType::f32, kCuda));
  expect_error("add: all inputs must be alike, got f32 on cpu and f32 on cuda:0", [&] { on_cpu + on_gpu; });
  expect_error("linear: parameters must be f32 on cuda:0 for x of f32, got f32 on cpu",
               [&] { linear(on_gpu, on_cpu); });
  expect_error("gelu: on a GPU dtype must be f32, bf16 or f16, got f64",
               [] { gelu(Variable(zeros({2}, DType::f64, kCuda))); });
  const Variable halves(zeros({2, 4}, DType::bf16, kCuda)), gain(zeros({4}, DType::f16, kCuda));
  expect_error("layer_norm: parameters must be f32 on cuda:0 for x of bf16, got f16 on cuda:0",
               [&] { layer_norm(halves, gain, gain); });
}

}  // namespace
}  // namespace lacuna::test

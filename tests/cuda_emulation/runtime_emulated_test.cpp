// Tensors, memory, streams and graphs on the emulated GPU, or on a real one.

#include "core/allocator.h"
#include "core/cuda/runtime.h"
#include "core/dispatch.h"
#include "optim/adam.h"
#include "optim/clip.h"
#include "tests/cuda_emulation/gpu_memory.h"
#include "tests/cuda_emulation/sanitizers.h"
#include "tests/support/expect_error.h"
#include "tests/support/tensors.h"

namespace lacuna::test {
namespace {

TEST_CASE("gpu tensors: fill, copy, convert and add as on the CPU") {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i64, DType::i32, DType::u8}) {
    CAPTURE(name_of(dtype));
    for (const double value : {0.0, 3.0})
      CHECK(same_bits(to_device(full({3, 5}, dtype, value, kCuda), kCpu), full({3, 5}, dtype, value)));
  }
  const Tensor x = random_tensor({3, 7}, DType::f64, 1);
  for (const DType from : {DType::f64, DType::f32, DType::bf16, DType::f16})
    for (const DType to : {DType::f64, DType::f32, DType::bf16, DType::f16}) {
      CAPTURE(concat(from, " to ", to));
      const Tensor host = to_dtype(x, from);
      CHECK(same_bits(to_device(to_dtype(to_device(host, kCuda), to), kCpu), to_dtype(host, to)));
    }
  const Tensor a = random_tensor({5, 33}, DType::f32, 2), b = random_tensor({5, 33}, DType::f32, 3);
  const Tensor sum = clone(to_device(a, kCuda));
  add_in_place(sum, to_device(b, kCuda));
  CHECK(same_bits(to_device(sum, kCpu), sum_of(a, b)));
  expect_error("copy: cannot convert", [] { copy(zeros({2}, DType::u8, kCuda), zeros({2}, DType::f32, kCuda)); });
}

TEST_CASE("gpu tensors: slices at odd places") {
  const Tensor x = random_tensor({7, 3}, DType::bf16, 1), y = random_tensor({7, 3}, DType::bf16, 2);
  const Tensor sum = to_device(clone(x), kCuda);
  add_in_place(sum.slice(1, 6), to_device(y, kCuda).slice(1, 6));
  const std::vector<bf16> got = to_vector<bf16>(sum), before = to_vector<bf16>(x), added = to_vector<bf16>(y);
  for (size_t i = 0; i < got.size(); ++i) {
    const bool inside = i >= 3 && i < 18;
    CHECK(got[i].bits == (inside ? bf16(float(before[i]) + float(added[i])) : before[i]).bits);
  }
}

TEST_CASE("gpu memory: counted by category; exhausted, it says who holds it") {
  Allocator& allocator = Allocator::of(kCuda);
  const int64_t before = allocator.stats().current[static_cast<size_t>(MemoryCategory::optimizer)];
  {
    const MemoryScope scope(MemoryCategory::optimizer);
    const Tensor held = zeros({1024}, DType::f32, kCuda);
    CHECK(allocator.stats().current[static_cast<size_t>(MemoryCategory::optimizer)] == before + 4096);
    expect_error("out of memory on cuda:0", [] { empty({int64_t{1} << 40}, DType::u8, kCuda); });
    expect_error("memory of the device", [] { empty({int64_t{1} << 40}, DType::u8, kCuda); });
  }
  CHECK(allocator.stats().current[static_cast<size_t>(MemoryCategory::optimizer)] == before);
}

TEST_CASE("gpu streams: nothing happens before somebody waits; freed memory lives until the work on it is done") {
  const Stream stream = gpu::compute_stream(kCuda);
  gpu::PinnedBuffer host(4);
  const Tensor kept = empty({4}, DType::u8, kCuda);
  {
    const Tensor temporary = full({4}, DType::u8, 7, kCuda);
    copy(temporary, kept);
  }
  gpu::copy_bytes(stream, host.data(), kept.raw(), 4);
#if !LACUNA_ON_GPU  // which may have been quick
  CHECK(host.data()[0] == std::byte{0xff});
#endif
  gpu::synchronize(stream);
  CHECK(host.data()[0] == std::byte{7});
}

TEST_CASE("gpu streams: an event orders two of them") {
  const Stream compute = gpu::compute_stream(kCuda), copies = gpu::copy_stream(kCuda);
  gpu::PinnedBuffer host(1);
  const Tensor x = empty({1}, DType::u8, kCuda), y = empty({1}, DType::u8, kCuda);
  gpu::Event arrived;
  host.data()[0] = std::byte{5};
  gpu::copy_bytes(copies, x.raw(), host.data(), 1);
  arrived.record(copies);
  arrived.make_wait(compute);
  copy(x, y);
  CHECK(to_vector<uint8_t>(y) == std::vector<uint8_t>{5});
}

TEST_CASE("gpu graph: records, launches, takes new arguments; what cannot be recorded leaves nothing behind") {
  const Stream stream = gpu::compute_stream(kCuda);
  const Tensor x = zeros({4}, DType::f32, kCuda);
  gpu::Graph graph;
  for (const double value : {1.0, 2.0}) {
    graph.run(stream, [&] {
      const Tensor temporary = full({4}, DType::f32, value, kCuda);
      add_in_place(x, temporary);
    });
    CHECK(graph.nodes() == 2);
  }
  CHECK(to_vector<float>(x) == std::vector<float>{3, 3, 3, 3});
  const int64_t in_use = gpu_bytes_in_use();
  expect_error(LACUNA_ON_GPU ? "cudaErrorStreamCapture" : "nobody can wait", [&] {
    graph.run(stream, [&] {
      const Tensor temporary = full({4}, DType::f32, 9.0, kCuda);
      add_in_place(x, temporary);
      gpu::synchronize(stream);
    });
  });
  CHECK(to_vector<float>(x) == std::vector<float>{3, 3, 3, 3});
  gpu::synchronize(stream);
  CHECK(gpu_bytes_in_use() == in_use);
}

#if !LACUNA_ON_GPU
TEST_CASE("gpu errors: a machine without a usable GPU") {
  const emulation::NoDevice none("no NVIDIA driver is installed on this machine");
  expect_error("cuda:0: no NVIDIA driver is installed on this machine", [] { empty({1}, DType::f32, kCuda); });
}
#endif

TEST_CASE("gpu errors: name the operation, its tensors and CUDA's reason") {
  const Tensor x = zeros({2, 3}, DType::bf16), none;
  const auto refused = [](const auto&...) { gpu::check_cuda(700, "launch of 3 blocks"); };
  expect_error(LACUNA_ON_GPU ? "some_kernel: bf16 [2, 3]: launch of 3 blocks: cudaErrorIllegalAddress"
                             : "some_kernel: bf16 [2, 3]: launch of 3 blocks: CUDA error 700",
               [&] { call_on_gpu("some_kernel", refused, 1.0, x, none); });
}

// --- The optimizer

using emulation::under_tsan;  // there the emulator takes some hundred times as long

// The last in more than one piece.
std::vector<ParameterSpec> specs() {
  return {{"weight", {3, 11}, 1.0, 0.0}, {"bias", {5}, 0.0, 0.5}, {"large", {under_tsan() ? 30 : 700, 50}, 0.5, 0.0}};
}

struct Optimized {
  Tensor values, exp_avg, exp_avg_sq, average, rounded;
};

// Three clipped steps with the same gradients on any device and in any dtype.
Optimized optimize(DType dtype, Device device, DType rounded_dtype) {
  const Parameters parameters(specs(), /*seed=*/1, dtype, device, rounded_dtype);
  Adam adam(parameters, {.weight_decay = 0.1});
  Ema ema(parameters, 0.9);
  for (int64_t step = 0; step < 3; ++step) {
    for (const Parameters::Entry& entry : parameters.entries())
      copy(to_device(random_tensor(entry.shape, dtype, static_cast<uint64_t>(10 * step + entry.shape.rank()), 0.1),
                     device),
           entry.variable.grad());
    adam.step({.lr = 0.01,
               .scale = 0.5,
               .sum_of_squares = gradient_sum_of_squares(parameters),
               .max_norm = 1.0,
               .ema = &ema});
  }
  return {to_device(parameters.values(), kCpu), to_device(adam.exp_avg(), kCpu), to_device(adam.exp_avg_sq(), kCpu),
          to_device(ema.average(), kCpu),
          parameters.rounded().defined() ? to_device(parameters.rounded(), kCpu) : Tensor()};
}

TEST_CASE("gpu adam: unscale, clip, update, average and round in one launch, as the CPU in f64") {
  const Optimized exact = optimize(DType::f64, kCpu, DType::f32), plain = optimize(DType::f32, kCpu, DType::f32);
  for (const DType dtype : {DType::bf16, DType::f16}) {
    const Optimized on_gpu = optimize(DType::f32, kCuda, dtype);
    expect_as_accurate({on_gpu.values, on_gpu.exp_avg, on_gpu.exp_avg_sq, on_gpu.average},
                       {plain.values, plain.exp_avg, plain.exp_avg_sq, plain.average},
                       {exact.values, exact.exp_avg, exact.exp_avg_sq, exact.average});
    CHECK(same_bits(on_gpu.rounded, to_dtype(on_gpu.values, dtype)));
  }
}

TEST_CASE("gpu adam: the norm is the CPU's, and gradients that are not finite change nothing") {
  const Parameters on_cpu(specs(), 1), on_gpu(specs(), 1, DType::f32, kCuda);
  copy(random_tensor(on_cpu.gradients().shape(), DType::f32, 3), on_cpu.gradients());
  copy(on_cpu.gradients(), on_gpu.gradients());
  CHECK(global_gradient_norm(on_gpu) == doctest::Approx(global_gradient_norm(on_cpu)).epsilon(1e-14));

  Adam adam(on_gpu, {});
  const Tensor before = to_device(on_gpu.values(), kCpu);
  fill(on_gpu.gradients().slice(40, 41), std::numeric_limits<double>::infinity());
  adam.step({.lr = 0.1, .sum_of_squares = gradient_sum_of_squares(on_gpu), .max_norm = 1.0});
  CHECK(same_bits(to_device(on_gpu.values(), kCpu), before));
  CHECK(max_abs(to_device(adam.exp_avg(), kCpu)) == 0.0);
}

}  // namespace
}  // namespace lacuna::test

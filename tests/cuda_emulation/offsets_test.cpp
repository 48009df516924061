// Attention on tensors whose elements 32 bits do not count: their last rows against those of a short sequence that ends
// alike. An offset cut to 32 bits leads from them to constant rows or out of the tensor, so that others than their
// random numbers are read, their results are left unwritten, or the GPU faults. Under emulation the long sequence is
// short too: what is tried there is the comparison.

#include <doctest/doctest.h>

#include <string>

#include "core/allocator.h"
#include "core/cuda/runtime.h"
#include "ops/sparse_attention/sparse_attention.h"
#include "tests/support/tensors.h"

using namespace lacuna;
using namespace lacuna::test;

namespace {

constexpr int64_t kHeads = 2, kWidth = 64, kColumnsOfQkv = 3 * kHeads * kWidth, kColumnsOfO = kHeads * kWidth;
constexpr int64_t kCompared = 64;  // rows
/// Rows of random numbers: the compared ones and all that can reach them, by tiles of 128 and windows of 300. The last
/// tile is cut off.
constexpr int64_t kRandom = 684;
constexpr double kNumber = 0.25;

struct Ends {
  Tensor qkv, d_o;  // [kRandom, columns]
};

Ends random_ends(DType dtype) {
  return {random_tensor({kRandom, kColumnsOfQkv}, dtype, 1), random_tensor({kRandom, kColumnsOfO}, dtype, 2)};
}

Tensor last(const Tensor& x, int64_t rows) { return x.view((x.dim(1) - rows) * x.dim(2), {rows, x.dim(2)}); }

/// The last rows of o and of the gradients of q, k and v, of a sequence that ends as given after `constant` other rows.
std::vector<Tensor> attend(const Ends& ends, int64_t constant, const char* pattern) {
  const auto sequence = [&](const Tensor& end) {
    const Tensor x = full({1, constant + kRandom, end.dim(1)}, end.dtype(), kNumber, kCuda);
    copy(end, last(x, kRandom));
    return x;
  };
  const Variable qkv(sequence(ends.qkv), /*requires_grad=*/true);
  const Variable o = sparse_attention(qkv, kWidth, parse_attention(pattern).layers.at(0), kHeads);
  backward(o, sequence(ends.d_o));
  return {to_device(last(o.value(), kCompared), kCpu), to_device(last(qkv.grad(), kCompared), kCpu)};
}

/// How many constant rows come before the random ones: whole tiles and blocks, so that both sequences fall into them
/// alike. On a GPU 2^32 elements of o, which neither int nor unsigned counts, and three times as many of q, k and v;
/// half of that or a quarter where memory is short; 0 where it is shorter, and then the test says so.
int64_t constant_rows([[maybe_unused]] DType dtype) {
  constexpr int64_t kTiles = 256;
#if LACUNA_ON_GPU
  constexpr int64_t kGiB = int64_t{1} << 30;
  Allocator::of(kCuda).release_cached();
  const int64_t available = gpu::free_bytes(kCuda);
  int64_t needed = 0;
  for (const int bits : {32, 31, 30}) {
    const int64_t rows = ((int64_t{1} << bits) / kColumnsOfO / kTiles + 1) * kTiles;
    // With gradients, and as much larger as blocks may be than tensors; what else there is are a few numbers a row.
    needed = 2 * (rows + kRandom) * (kColumnsOfQkv + kColumnsOfO) * size_of(dtype) * 9 / 8 + kGiB;
    if (needed <= available) return rows;
  }
  MESSAGE("skipped in ", name_of(dtype), ": needs ", needed / kGiB, " GiB of the GPU's memory, of which ",
          available / kGiB, " are free");
  return 0;
#else
  return kTiles;
#endif
}

void check_last_rows(DType dtype, const char* pattern) {
  CAPTURE(std::string(pattern));
  const int64_t constant = constant_rows(dtype);
  if (constant == 0) return;
  const Ends ends = random_ends(dtype);
  expect_same_bits(attend(ends, constant, pattern), attend(ends, 0, pattern));
  Allocator::of(kCuda).release_cached();  // other tests may need it
}

}  // namespace

TEST_CASE("sparse_attention on a GPU: the last rows of tensors of 2^32 elements") {
  check_last_rows(DType::bf16, "local(window=9)");                                    // forward_tiles, sliding_backward
  check_last_rows(DType::bf16, "local(window=300)");                                  // hopper_forward, backward_tiles
  check_last_rows(DType::bf16, "fixed_block(stride=128)");                            // column_tiles
  check_last_rows(DType::bf16, "local(window=140) + dilated(window=9, dilation=2)");  // tiles that join earlier ones
  check_last_rows(DType::f32, "local(window=9)");                                     // rows
}

TEST_CASE("sparse_attention on a GPU: one row from elsewhere shows in those that are compared") {
  const Ends ends = random_ends(DType::bf16);
  for (const char* pattern : {"local(window=9)", "fixed_block(stride=128)"}) {
    CAPTURE(std::string(pattern));
    const std::vector<Tensor> right = attend(ends, 0, pattern);
    // Of the first row that is compared: one head of q, of k or of v, then of d_o.
    const auto with_constant = [](const Tensor& x, int64_t column) {
      const Tensor changed = clone(x);
      fill(changed.view((kRandom - kCompared) * x.dim(1) + column, {kWidth}), kNumber);
      return changed;
    };
    for (int part = 0; part < 3; ++part) {
      const std::vector<Tensor> wrong = attend({with_constant(ends.qkv, part * kColumnsOfO), ends.d_o}, 0, pattern);
      CHECK(!same_bits(wrong[0], right[0]));
      CHECK(!same_bits(wrong[1], right[1]));
    }
    CHECK(!same_bits(attend({ends.qkv, with_constant(ends.d_o, 0)}, 0, pattern)[1], right[1]));
  }
}

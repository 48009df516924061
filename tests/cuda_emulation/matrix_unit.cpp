#include "tests/cuda_emulation/matrix_unit.h"

#include <algorithm>
#include <cstring>

namespace lacuna::emulation {

namespace {

constexpr int kK = 16;
constexpr int kRows = 16, kGroupRows = 64;  // of a warp, of its warpgroup
constexpr uint32_t kPoison = ~0u;

/// Where element i of a lane's accumulator is in [16][n]: PTX ISA, "Register fragments for wgmma.mma_async.m64nNk16".
size_t place(int lane, int i, int n) {
  const int row = lane / 4 + 8 * (i >> 1 & 1), column = i / 4 * 8 + 2 * (lane % 4) + (i & 1);
  return size_t(row) * n + column;
}

/// The address of the eight elements from (mn, k) on: consecutive k, or with `columns` consecutive m or n.
size_t piece(uint64_t descriptor, int mn, int k, bool columns, Location where) {
  const size_t start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4,
               stride = (descriptor >> 32 & 0x3fff) << 4;
  if (descriptor >> 49 & 7) fail(where, "a matrix descriptor with a base offset; the emulator has none");
  const int kind = int(4 - (descriptor >> 62)) % 4;  // gpu::Swizzle
  const size_t row = size_t{16} << kind, across = columns ? mn : k, along = columns ? k : mn;
  size_t at = start + along % 8 * row;
  if (kind)
    at += along / 8 * stride + (columns ? across / (row / 2) * leading + across % (row / 2) * 2 : across * 2);
  else
    at += columns ? across / 8 * stride + along / 8 * leading : along / 8 * stride + across / 8 * leading;
  return swizzled(at, kind);
}

}  // namespace

void MatrixUnit::fence(Registers accumulator, Registers operand) {
  fenced_.push_back(accumulator);
  fenced_.push_back(operand);
}

bool MatrixUnit::fenced(const void* registers) const {
  const auto* p = static_cast<const std::byte*>(registers);
  return std::any_of(fenced_.begin(), fenced_.end(), [p](Registers range) {
    const auto* begin = static_cast<const std::byte*>(range.begin);
    return begin <= p && p < begin + range.bytes;
  });
}

MatrixUnit::Accumulator* MatrixUnit::accumulator_of(const float* d) {
  const auto found =
      std::find_if(accumulators_.begin(), accumulators_.end(), [d](const auto& x) { return x.d[0] == d; });
  return found == accumulators_.end() ? nullptr : &*found;
}

/// Elements [count][16] of m or n; with `columns` [16][count].
std::vector<uint16_t> MatrixUnit::read_rows(uint64_t descriptor, int count, bool columns, Location where) {
  std::vector<uint16_t> x(size_t(count) * kK);
  for (int mn = 0; mn < count; mn += columns ? 8 : 1)
    for (int k = 0; k < kK; k += columns ? 1 : 8) {
      const std::byte* const from = proxy_.read(piece(descriptor, mn, k, columns, where), 16, where);
      if (under_tsan()) pieces_read_.push_back(from);
      std::memcpy(&x[columns ? size_t(k) * count + mn : size_t(mn) * kK + k], from, 16);
    }
  return x;
}

MatrixUnit::Operands MatrixUnit::read(const Operation& operation) {
  const Product& p = operation.product;
  Operands x;
  pieces_read_.clear();
  if (!p.a_registers) {
    x.a = read_rows(p.a, kGroupRows, false, operation.where);
  } else {
    x.a.resize(size_t(kGroupRows) * kK);
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 8; ++i) {
        const int row = lane / 4 + 8 * (i / 2 & 1), k = 2 * (lane % 4) + 8 * (i / 4) + i % 2;
        x.a[(rows_ + row) * kK + k] = uint16_t(operation.a_registers[lane][i / 2] >> 16 * (i % 2));
      }
  }
  x.b = read_rows(p.b, p.n, p.columns, operation.where);
  return x;
}

void MatrixUnit::begin(const Warp<Product>& warp, Location where) {
  const Product& first = warp[0];
  Operation operation{first, {}, {}, open_group_, where};
  for (int lane = 0; lane < 32; ++lane) {
    const Product& p = warp[lane];
    if (p.a != first.a || p.b != first.b || p.add != first.add)
      fail(where, "lanes 0 and %d of a warp bring different descriptors to a wgmma", lane);
    operation.a_registers[lane] = p.a_registers;
  }
  if (first.n % 8 || first.n < 8 || first.n > 256)
    fail(where, "wgmma: n must be a multiple of 8 up to 256, got %d", first.n);
  Accumulator* d = accumulator_of(first.d);
  if ((!d && !fenced(first.d)) || (first.a_registers && !fenced(first.a_registers)))
    fail(where, "a wgmma whose registers no wgmma.fence names since they were last accessible");
  history_.emplace_back(first.a, first.b);

  operation.operands = read(operation);
  observed_.as_thread([&] {
    acquire(&begun_);
    for (const std::byte* x : pieces_read_) __tsan_read_range(const_cast<std::byte*>(x), 16);
  });
  if (!d) {
    d = &accumulators_.emplace_back(Accumulator{{}, first.n, 0, std::vector<float>(size_t(kRows) * first.n)});
    for (int lane = 0; lane < 32; ++lane) {
      d->d[lane] = warp[lane].d;
      for (int i = 0; i < first.n / 2; ++i) {
        d->values[place(lane, i, first.n)] = warp[lane].d[i];
        std::memcpy(&warp[lane].d[i], &kPoison, sizeof(kPoison));
      }
    }
  }
  if (d->n != first.n) fail(where, "a wgmma joins others of another shape on the same registers");
  ++d->pending;
  operations_.push_back(std::move(operation));
}

void MatrixUnit::wait(int groups_left, const float* finished, Location where) {
  while (!operations_.empty() && operations_.front().group < open_group_ - groups_left) {
    finish(operations_.front());
    operations_.pop_front();
  }
  fenced_.clear();
  if (accumulator_of(finished)) fail(where, "this wait leaves the products in the registers that it names under way");
  observed_.as_thread([&] { release(&done_); });
}

void MatrixUnit::finish(const Operation& operation) {
  const Product& p = operation.product;
  const Operands operands = read(operation);
  observed_.as_thread([&] {
    for (const std::byte* x : pieces_read_) __tsan_read_range(const_cast<std::byte*>(x), 16);
  });
  if (operands != operation.operands) fail(operation.where, "an operand of wgmma changed before it was done");

  std::vector<float> a(operands.a.size()), b(operands.b.size());
  p.widen(operands.a.data(), a.data(), a.size());
  p.widen(operands.b.data(), b.data(), b.size());
  Accumulator& d = *accumulator_of(p.d);
  if (!p.add) std::fill(d.values.begin(), d.values.end(), 0.0f);
  const int step_k = p.columns ? p.n : 1, step_n = p.columns ? 1 : kK;
  for (int m = 0; m < kRows; ++m)
    for (int k = 0; k < kK; ++k)
      for (int n = 0; n < p.n; ++n)
        d.values[size_t(m) * p.n + n] += a[(rows_ + m) * kK + k] * b[k * step_k + n * step_n];

  if (--d.pending > 0) return;
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < p.n / 2; ++i) {
      if (std::memcmp(&d.d[lane][i], &kPoison, sizeof(kPoison)) != 0)
        fail(operation.where, "registers of an accumulator were written before wgmma was done with them");
      d.d[lane][i] = d.values[place(lane, i, p.n)];
    }
  accumulators_.erase(accumulators_.begin() + (&d - accumulators_.data()));
}

void MatrixUnit::check_idle() const {
  if (!operations_.empty()) fail(operations_.front().where, "a thread exits before its wgmma were waited for");
}

}  // namespace lacuna::emulation

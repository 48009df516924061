#include "tests/cuda_emulation/copy_unit.h"

#include <algorithm>

#include "tests/cuda_emulation/scheduler.h"

namespace lacuna::emulation {

namespace {

/// What the 8 bytes of an mbarrier hold.
uint64_t mark_of(const uint64_t* barrier) { return ~reinterpret_cast<uintptr_t>(barrier); }

/// Calls fn(row, from, bytes) for each row of dimension 0 of a box: `bytes` lie in the tensor, from `from` on, and the
/// row begins at element -first of them; none when it is outside.
template <class Fn>
void for_each_row(const gpu::TensorBox& t, const std::array<int64_t, gpu::kTensorRank>& at, const Fn& fn) {
  constexpr int kElement = 2;
  const int64_t first = std::clamp<int64_t>(at[0], 0, int64_t(t.sizes[0]));
  const int64_t last = std::clamp<int64_t>(at[0] + t.box[0], first, int64_t(t.sizes[0]));
  size_t rows = 1;
  for (int i = 1; i < gpu::kTensorRank; ++i) rows *= t.box[i];
  for (size_t row = 0; row < rows; ++row) {
    bool inside = true;
    const auto* from = static_cast<const std::byte*>(t.data) + first * kElement;
    size_t rest = row;
    for (int i = 1; i < gpu::kTensorRank; ++i) {
      const int64_t index = at[i] + int64_t(rest % t.box[i]);
      rest /= t.box[i];
      inside = inside && index >= 0 && index < int64_t(t.sizes[i]);
      if (inside) from += index * int64_t(t.strides[i]);
    }
    fn(row, from, inside ? size_t(last - first) * kElement : 0, size_t(first - at[0]) * kElement);
  }
}

}  // namespace

CopyUnit::Mbarrier& CopyUnit::at(uint64_t* barrier, Location where) {
  const auto found = barriers_.find(barrier);
  if (found == barriers_.end()) fail(where, "an mbarrier that was not initialised");
  if (*barrier != mark_of(barrier)) fail(where, "an mbarrier that something else was written over");
  return found->second;
}

void CopyUnit::init(uint64_t* barrier, int arrivals, Location where) {
  check_shared(barrier, 8, 8, "an mbarrier", where);
  if (arrivals < 1 || arrivals >= 1 << 20) fail(where, "an mbarrier is for 1 to 2^20 - 1 arrivals, got %d", arrivals);
  if (!barriers_.emplace(barrier, Mbarrier{.arrivals = arrivals, .pending = arrivals}).second)
    fail(where, "an mbarrier that is initialised already");
  *barrier = mark_of(barrier);
}

void CopyUnit::publish() {
  for (auto& [address, barrier] : barriers_) barrier.published = true;
}

void CopyUnit::arrive(uint64_t* address, int bytes, Location where) {
  Mbarrier& barrier = at(address, where);
  if (barrier.pending == 0) fail(where, "more arrivals than the %d of the mbarrier's phase", barrier.arrivals);
  barrier.bytes += bytes;
  if (barrier.bytes >= 1 << 20) fail(where, "an mbarrier waits for less than 2^20 bytes, got %ld", long(barrier.bytes));
  --barrier.pending;
  release(&barrier.sync[barrier.phase % 2]);
  end_phase_if_complete(barrier);
}

void CopyUnit::wait(uint64_t* address, int parity, Location where) {
  Mbarrier& barrier = at(address, where);
  if (int(barrier.phase % 2) == parity) {
    barrier.waiting.emplace_back(barrier.phase, block_.current().linear);
    block_.wait("an mbarrier", where);
  }
  acquire(&barrier.sync[parity % 2]);
}

void CopyUnit::end_phase_if_complete(Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  for (const auto& [phase, thread] : barrier.waiting) block_.make_ready(thread);
  barrier.waiting.clear();
  barrier.pending = barrier.arrivals;
  ++barrier.phase;
}

void CopyUnit::begin(void* to, const gpu::TensorBox& tensor, uint64_t* barrier, const int (&at_index)[gpu::kTensorRank],
                     Location where) {
  size_t bytes = 2;
  for (const uint32_t size : tensor.box) bytes *= size;
  const size_t alignment = tensor.swizzle == gpu::Swizzle::none ? 128 : size_t{128} << int(tensor.swizzle);
  const size_t address = proxy_.address(to, bytes, alignment, "the destination of a copy", where);
  if (!at(barrier, where).published)
    fail(where, "the copy unit does not see the mbarrier yet: fence.proxy.async is missing after its initialisation");
  const std::vector<std::byte> poison(bytes, std::byte{0xff});
  proxy_.write(address, poison.data(), bytes);
  BoxCopy copy{static_cast<std::byte*>(to), tensor, barrier, {}, bytes, where, std::make_unique<char>()};
  std::copy(at_index, at_index + gpu::kTensorRank, copy.at.begin());
  if (__asan_region_is_poisoned)
    for_each_row(tensor, copy.at, [&](size_t, const std::byte* from, size_t row_bytes, size_t) {
      if (__asan_region_is_poisoned(const_cast<std::byte*>(from), row_bytes))
        fail(where, "the copy unit reads outside the tensor's memory");
    });
  release(copy.begun.get());
  copies_.push_back(std::move(copy));
}

void CopyUnit::perform(size_t index) {
  const Unobserved unobserved;
  const BoxCopy copy = std::move(copies_[index]);
  copies_.erase(copies_.begin() + std::ptrdiff_t(index));
  Mbarrier& barrier = at(copy.barrier, copy.where);
  observed_.as_thread([&] {
    acquire(copy.begun.get());
    for_each_row(copy.tensor, copy.at, [&](size_t, const std::byte* from, size_t bytes, size_t) {
      if (bytes) __tsan_read_range(const_cast<std::byte*>(from), bytes);
    });
    __tsan_write_range(copy.to, copy.bytes);
    release(&barrier.sync[barrier.phase % 2]);
  });
  const size_t address = proxy_.address(copy.to, copy.bytes, 128, "the destination of a copy", copy.where);
  const size_t row_bytes = size_t{2} * copy.tensor.box[0];
  std::vector<std::byte> row(row_bytes);
  for_each_row(copy.tensor, copy.at, [&](size_t r, const std::byte* from, size_t bytes, size_t skipped) {
    std::fill(row.begin(), row.end(), std::byte{0});
    if (bytes) std::memcpy(&row[skipped], from, bytes);
    for (size_t x = 0; x < row_bytes; x += 16)
      proxy_.write(swizzled(address + r * row_bytes + x, int(copy.tensor.swizzle)), &row[x], 16);
  });
  barrier.bytes -= int64_t(copy.bytes);
  end_phase_if_complete(barrier);
}

void CopyUnit::finish(void* end) {
  if (!copies_.empty()) fail(copies_[0].where, "the block ends before the copy that begins here has arrived");
  observed_.as_thread([&] { release(end); });
}

}  // namespace lacuna::emulation

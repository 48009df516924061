#include "experiments/device_step.h"

#include <utility>

#include "core/cuda/blas.h"
#include "core/dispatch.h"

namespace lacuna {

#if LACUNA_HAS_CUDA
std::string product_algorithms(Device device) {
  return device == kCpu ? std::string() : gpu::matrix_product_choices(device);
}
std::string take_over_product_algorithms(Device device, const std::string& algorithms) {
  return device == kCpu ? std::string() : gpu::take_over_choices(device, algorithms);
}
#else
std::string product_algorithms(Device) { return ""; }
std::string take_over_product_algorithms(Device, const std::string&) { return ""; }
#endif

// --- BatchQueue

BatchQueue::BatchQueue(Device device, std::function<Tensor(int64_t)> read) : device_(device), read_(std::move(read)) {}

BatchQueue::~BatchQueue() {
  for (const std::unique_ptr<Slot>& slot : slots_)
    if (slot && slot->step >= 0) slot->arrived.synchronize();  // its memory must not go while a copy uses it
}

void BatchQueue::fill(Slot& slot, int64_t step) {
  const Tensor host = read_(step);
  if (!slot.pinned) {
    slot.pinned = std::make_unique<gpu::PinnedBuffer>(host.bytes());
    slot.tokens = empty(host.shape(), host.dtype(), device_);
    slot.used.record(gpu::compute_stream(device_));  // its memory may have been somebody's until here
  }
  if (slot.step >= 0) slot.arrived.synchronize();
  std::memcpy(slot.pinned->data(), host.raw(), static_cast<size_t>(host.bytes()));
  const Stream stream = gpu::copy_stream(device_);
  slot.used.make_wait(stream);
  gpu::copy_bytes(stream, slot.tokens.raw(), slot.pinned->data(), host.bytes());
  slot.arrived.record(stream);
  slot.step = step;
}

Tensor BatchQueue::get(int64_t step) {
  if (device_ == kCpu) return read_(step);
  std::unique_ptr<Slot>& slot = slots_[static_cast<size_t>(step % 2)];
  if (!slot) slot = std::make_unique<Slot>();
  if (slot->step != step) fill(*slot, step);
  slot->arrived.make_wait(gpu::compute_stream(device_));
  current_ = slot.get();
  return slot->tokens;
}

void BatchQueue::prefetch_next() {
  if (device_ == kCpu) return;
  current_->used.record(gpu::compute_stream(device_));
  const int64_t next = current_->step + 1;
  std::unique_ptr<Slot>& slot = slots_[static_cast<size_t>(next % 2)];
  if (!slot) slot = std::make_unique<Slot>();
  fill(*slot, next);
}

// --- NumberQueue

void NumberQueue::push(const Tensor& from) {
  check(size() < 2, "NumberQueue: two sets of numbers wait to be taken");
  Transfer& transfer = transfers_[static_cast<size_t>(pushed_++ % 2)];
  transfer.from = from;
  if (device_ == kCpu) return;
  const Stream stream = gpu::compute_stream(device_);
  if (!transfer.pinned || transfer.pinned->bytes() < from.bytes())
    transfer.pinned = std::make_unique<gpu::PinnedBuffer>(from.bytes());
  gpu::copy_bytes(stream, transfer.pinned->data(), from.raw(), from.bytes());
  transfer.arrived.record(stream);
}

std::optional<std::vector<double>> NumberQueue::pop() {
  if (size() == 0) return std::nullopt;
  Transfer& transfer = transfers_[static_cast<size_t>(popped_++ % 2)];
  const Tensor from = std::exchange(transfer.from, Tensor());
  if (device_ == kCpu) return to_vector<double>(from);
  transfer.arrived.synchronize();
  const auto* const numbers = reinterpret_cast<const double*>(transfer.pinned->data());
  return std::vector<double>(numbers, numbers + from.numel());
}

}  // namespace lacuna

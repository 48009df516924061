// The entry points of the emulator, and the launch of a grid.

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string_view>
#include <thread>

#include "core/error.h"
#include "tests/cuda_emulation/sanitizers.h"
#include "tests/cuda_emulation/scheduler.h"

namespace lacuna::emulation {

/// Adds to what `stream` will do. From runtime_emulated.cpp; without it a launch is done at once.
[[gnu::weak]] void enqueue(Stream stream, std::function<void()> work);
/// From there too; without it those of sm_90.
[[gnu::weak]] size_t shared_bytes_of_device();

namespace {

Schedule schedule_from_environment() {
  const char* variable = std::getenv("LACUNA_EMULATION");
  const std::string_view text = variable ? variable : "forward";
  if (text == "forward") return {};
  if (text == "reverse") return {.order = Schedule::Order::reverse};
  constexpr std::string_view kRandom = "random:";
  Schedule random{.order = Schedule::Order::random};
  if (text.starts_with(kRandom)) {
    const auto [end, error] = std::from_chars(text.data() + kRandom.size(), text.data() + text.size(), random.seed);
    if (error == std::errc() && end == text.data() + text.size()) return random;
  }
  std::fprintf(stderr, "LACUNA_EMULATION must be forward, reverse or random:<seed>, got '%s'\n", variable);
  std::exit(2);
}

std::mutex totals_mutex;
Counters totals;
char fence_object = 0;

struct Grid {
  dim3 grid, block;
  size_t shared_bytes;
  const std::function<void()>& kernel;
  std::atomic<uint64_t> next{0};

  uint64_t blocks() const { return uint64_t{grid.x} * grid.y * grid.z; }

  void work() {  // on each OS thread
    Block running_block(grid, block, shared_bytes, kernel);
    for (uint64_t i; (i = next.fetch_add(1)) < blocks();)
      running_block.run({unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)});
    const std::lock_guard lock(totals_mutex);
    totals.ldmatrix_phases += running_block.counters.ldmatrix_phases;
    totals.bank_conflicts += running_block.counters.bank_conflicts;
    totals.wgmma += running_block.counters.wgmma;
  }
};

void check_configuration(dim3 grid, dim3 block, size_t shared_bytes, Location where) {
  const auto check_sizes = [&](const char* what, dim3 size, dim3 most) {
    check(size.x - 1 < most.x && size.y - 1 < most.y && size.z - 1 < most.z, "launch at ", where.file, ":", where.line, ": ",
          what, " must be (1,1,1) to (", most.x, ",", most.y, ",", most.z, "), got (", size.x, ",", size.y, ",", size.z, ")");
  };
  check_sizes("grid", grid, dim3(2147483647, 65535, 65535));
  check_sizes("block", block, dim3(1024, 1024, 64));
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  check(threads <= 1024, "launch at ", where.file, ":", where.line, ": a block has at most 1024 threads, got ", threads);
  check(shared_bytes <= most_shared_bytes(), "launch at ", where.file, ":", where.line, ": a block has at most ",
        most_shared_bytes(), " bytes of shared memory, got ", shared_bytes);
}

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
  {
    const std::lock_guard lock(totals_mutex);
    ++totals.launches;
  }
  Grid work{.grid = grid, .block = block, .shared_bytes = shared_bytes, .kernel = kernel};
  const int wanted = schedule().os_threads;
  const uint64_t processors = wanted ? wanted : std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> others(std::min(processors, work.blocks()) - 1);
  for (std::thread& thread : others) thread = std::thread([&work] { work.work(); });
  work.work();
  for (std::thread& thread : others) thread.join();
}

}  // namespace

Schedule& schedule() {
  static Schedule current = schedule_from_environment();
  return current;
}

Counters counters() {
  const std::lock_guard lock(totals_mutex);
  return totals;
}

size_t most_shared_bytes() { return shared_bytes_of_device ? shared_bytes_of_device() : 227 * 1024; }

void launch(Stream stream, dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> kernel, Location where) {
  check_configuration(grid, block, shared_bytes, where);
  if (!enqueue) return run_grid(grid, block, shared_bytes, kernel);
  enqueue(stream, [=, kernel = std::move(kernel)] { run_grid(grid, block, shared_bytes, kernel); });
}

void fail(Location where, const char* format, ...) {
  std::fflush(stdout);
  std::fprintf(stderr, "emulation: ");
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "\n  at %s:%d (%s)\n", where.file, where.line, where.function);
  if (this_thread)
    std::fprintf(stderr, "  in block (%u,%u,%u), thread (%u,%u,%u)\n", this_block->index.x, this_block->index.y,
                 this_block->index.z, this_thread->index.x, this_thread->index.y, this_thread->index.z);
  stop();
}

void stop() {
  std::fflush(stderr);
  if (under_tsan()) std::_Exit(134);  // it does not like what test frameworks do when they catch a signal
  std::abort();
}

void meet_warp(uint32_t mask, WarpFunction function, void* argument, Meeting meeting, Location where) {
  const Unobserved unobserved;
  running->meet(mask, function, argument, meeting, where);
}

void sync_warp(uint32_t mask, Location where) {
  const Unobserved unobserved;
  running->sync_warp(mask, where);
}

int sync_barrier(int id, int threads, Reduction reduction, int value, Location where) {
  const Unobserved unobserved;
  return running->sync_barrier(id, threads, reduction, value, /*wait=*/true, where);
}

void arrive_at_barrier(int id, int threads, Location where) {
  const Unobserved unobserved;
  running->sync_barrier(id, threads, Reduction::none, 0, /*wait=*/false, where);
}

void yield(Location where) {
  const Unobserved unobserved;
  running->make_ready(running->current().linear);
  running->wait("a turn", where);
}

void fence() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  acquire(&fence_object);
  release(&fence_object);
}

void* static_shared(const void* key, size_t bytes, size_t alignment) {
  const Unobserved unobserved;
  return running->static_shared(key, bytes, alignment);
}

void check_shared(const void* p, size_t bytes, size_t alignment, const char* what, Location where) {
  if (reinterpret_cast<uintptr_t>(p) % alignment) fail(where, "%s is not aligned to %zu bytes", what, alignment);
  if (!running->owns(p, bytes)) fail(where, "%s is not in shared memory of the block", what);
}

void issue_copy(const Copy& copy) {
  const Unobserved unobserved;
  running->current().copies.copies.push_back(copy);
}

void commit_copies() {
  const Unobserved unobserved;
  CopyQueue& queue = running->current().copies;
  size_t closed = 0;
  for (const size_t size : queue.groups) closed += size;
  queue.groups.push_back(queue.copies.size() - closed);
}

bool next_copy(int groups_left, Copy& copy) {
  const Unobserved unobserved;
  CopyQueue& queue = running->current().copies;
  while (int(queue.groups.size()) > groups_left && queue.groups.front() == 0) queue.groups.pop_front();
  if (int(queue.groups.size()) <= groups_left) return false;
  copy = queue.copies.front();
  queue.copies.pop_front();
  --queue.groups.front();
  return true;
}

void count_ldmatrix(int phases, int conflicts) {
  running->counters.ldmatrix_phases += phases;
  running->counters.bank_conflicts += conflicts;
}

}  // namespace lacuna::emulation

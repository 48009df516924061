#include "tests/cuda_emulation/scheduler.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/cuda_emulation/async_units.h"
#include "tests/cuda_emulation/sanitizers.h"

namespace lacuna::emulation {

thread_local Block* running = nullptr;

namespace {

constexpr size_t kSharedAlignment = 1024;

size_t round_up(size_t bytes, size_t multiple) { return (bytes + multiple - 1) / multiple * multiple; }

bool same(Location a, Location b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

/// Fresh memory for every block: what it holds is NaN in every type, and sanitizers see each access outside it.
std::byte* allocate_shared(size_t bytes, size_t alignment) {
  const size_t room = round_up(bytes, alignment) + alignment;
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(alignment, room));
  std::memset(memory, 0xff, bytes);
  if (__asan_poison_memory_region) __asan_poison_memory_region(memory + bytes, room - bytes);
  return memory;
}

}  // namespace

/// The first and last function of every CUDA thread.
void run_thread() {
  enter_fiber();
  Block& block = *running;
  acquire(&block.start_);
  block.kernel_();
  release(&block.end_);
  block.exit_thread();
}

Block::Block(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel)
    : kernel_(kernel), schedule_(schedule()), threads_(size_t{block.x} * block.y * block.z) {
  info_ = {.index = {}, .block = block, .grid = grid, .dynamic_shared = nullptr, .dynamic_shared_bytes = shared_bytes};
  warps_.resize((threads_.size() + 31) / 32);
  running = this;
  this_block = &info_;
}

Block::~Block() {
  acquire(&end_);
  running = nullptr;
  this_block = nullptr;
}

void Block::run(uint3 index) {
  {
    const Unobserved unobserved;
    prepare(index);
  }
  release(&start_);
  current_ = next();
  this_thread = current_;
  switch_fiber(os_thread_, current_->context);
  this_thread = nullptr;
  const Unobserved unobserved;
  clean_up();
}

void Block::prepare(uint3 index) {
  info_.index = index;
  // Seeded by block: what a block does is the same for any number of OS threads.
  random_.seed(uint32_t(schedule_.seed * 1000003 + (uint64_t{index.z} * info_.grid.y + index.y) * info_.grid.x + index.x));
  info_.dynamic_shared = allocate_shared(info_.dynamic_shared_bytes, kSharedAlignment);
  uneven_ = coin();
  for (WarpState& warp : warps_) {
    warp = {};
    warp.rank = unsigned(random_());
  }
  for (Barrier& barrier : barriers_) barrier = {};
  ready_.clear();
  live_ = int(threads_.size());
  for (unsigned i = 0; i < threads_.size(); ++i) {
    DeviceThread& thread = threads_[i];
    std::unique_ptr<Stack> stack = std::move(thread.stack);
    thread = {};
    thread.index = {i % info_.block.x, i / info_.block.x % info_.block.y, i / (info_.block.x * info_.block.y)};
    thread.linear = i;
    thread.lane = i % 32;
    thread.warp = i / 32;
    thread.stack = stack ? std::move(stack) : std::make_unique<Stack>();
    start_fiber(thread.context, *thread.stack, i, run_thread);
    warps_[thread.warp].live |= 1u << thread.lane;
    ready_.push_back(i);
  }
}

void Block::clean_up() {
  if (units_) units_->finish(&end_);
  units_.reset();
  std::free(info_.dynamic_shared);
  for (const StaticShared& variable : static_shared_) std::free(variable.memory);
  static_shared_.clear();
  for (DeviceThread& thread : threads_) {
    destroy_fiber(thread.context);
    if (under_tsan()) thread.stack.reset();  // new memory, or the next block would seem to race with this one
  }
}

AsyncUnits& Block::units() {
  if (!units_)
    units_ = std::make_unique<AsyncUnits>(*this, info_.dynamic_shared, info_.dynamic_shared_bytes, warps_.size());
  return *units_;
}

/// Performs one copy of the copy unit; false when there is none.
bool Block::perform_copy() {
  const size_t count = units_ ? units_->copies.under_way() : 0;
  if (count == 0) return false;
  switch (schedule_.order) {
    case Schedule::Order::forward: units_->copies.perform(0); break;
    case Schedule::Order::reverse: units_->copies.perform(count - 1); break;
    case Schedule::Order::random: units_->copies.perform(random_() % count); break;
  }
  return true;
}

/// Which of those that could run does in random order. When all warps run equally fast none gets far ahead of another;
/// so in half of the blocks some are much faster, and now and then another one is.
size_t Block::choose() {
  size_t chosen = random_() % ready_.size();
  if (!uneven_) return chosen;
  const auto rank_of = [this](size_t i) -> unsigned& { return warps_[threads_[ready_[i]].warp].rank; };
  for (int i = 0; i < 3; ++i)
    if (const size_t other = random_() % ready_.size(); rank_of(other) > rank_of(chosen)) chosen = other;
  if (random_() % 1024 == 0) rank_of(chosen) = unsigned(random_());
  return chosen;
}

/// The thread to run next. Copies of the copy unit arrive when nothing else can happen, in random order also before.
DeviceThread* Block::next() {
  if (units_ && schedule_.order == Schedule::Order::random && random_() % 8 == 0) perform_copy();
  while (ready_.empty())
    if (!perform_copy()) return nullptr;
  if (schedule_.order == Schedule::Order::random) std::swap(ready_.front(), ready_[choose()]);
  const bool last = schedule_.order == Schedule::Order::reverse;
  const unsigned thread = last ? ready_.back() : ready_.front();
  last ? ready_.pop_back() : ready_.pop_front();
  return &threads_[thread];
}

void Block::wait(const char* what, Location where) {
  DeviceThread& me = current();
  me.waits_for = what;
  me.where = where;
  DeviceThread* other = next();
  if (!other) report_deadlock();
  if (other != &me) {
    current_ = other;
    this_thread = other;
    switch_fiber(me.context, other->context);
  }
  me.waits_for = nullptr;
}

void Block::let_others_go(Location where) {
  if (!coin()) return;
  make_ready(current().linear);
  wait("a turn", where);
}

void Block::exit_thread() {
  DeviceThread& me = current();
  {
    const Unobserved unobserved;
    leave_meetings(me);
  }
  DeviceThread* other = live_ > 0 ? next() : nullptr;
  if (!other && live_ > 0) report_deadlock();
  current_ = other;
  this_thread = other;
  switch_fiber(me.context, other ? other->context : os_thread_, /*final=*/true);
  std::abort();
}

/// Those who wait for all threads that live wait no longer for this one.
void Block::leave_meetings(DeviceThread& me) {
  if (!me.copies.copies.empty())
    fail(Location::here(), "a thread exits before the cp.async copies that it began were waited for");
  if (units_) units_->products[me.warp].check_idle();
  me.exited = true;
  --live_;
  WarpState& warp = warps_[me.warp];
  warp.live &= ~(1u << me.lane);
  for (Collective& collective : warp.collectives)
    if (collective.arrived && collective.arrived == (collective.mask & warp.live))
      finish_collective(me.warp, collective, -1);
  if (Barrier& all = barriers_[0]; live_ > 0 && all.threads == 0 && all.arrived == live_) finish_barrier(all);
}

void Block::meet(uint32_t mask, WarpFunction function, void* argument, Meeting meeting, Location where) {
  DeviceThread& me = current();
  WarpState& warp = warps_[me.warp];
  if (!(mask >> me.lane & 1)) fail(where, "lane %u is not in its own mask %08x", me.lane, mask);

  // Lanes may work under disjoint masks and meet all together later. They have diverged when some of them wait here for
  // lanes that wait elsewhere for them.
  Collective* mine = nullptr;
  for (Collective& other : warp.collectives) {
    if (!other.arrived) continue;
    const bool same_place = meeting == Meeting::anywhere || same(other.where, where);
    if (other.mask == mask && other.function == function && other.meeting == meeting && same_place)
      mine = &other;
    else if (other.mask >> me.lane & 1 && other.arrived & mask)
      fail(where, "the lanes of a warp have diverged: lanes %08x of mask %08x are at %s:%d, lane %u of mask %08x is here",
           other.arrived, other.mask, other.where.file, other.where.line, me.lane, mask);
  }
  if (!mine) {
    mine = std::find_if(warp.collectives.begin(), warp.collectives.end(), [](const Collective& c) { return !c.arrived; });
    if (mine == warp.collectives.end()) fail(where, "more than four collectives of one warp at a time");
    *mine = {.mask = mask, .arrived = 0, .function = function, .meeting = meeting, .where = where, .arguments = {}};
  }

  mine->arguments[me.lane] = argument;
  mine->arrived |= 1u << me.lane;
  if (mine->arrived != (mask & warp.live)) return wait("a collective operation of its warp", where);
  finish_collective(me.warp, *mine, int(me.lane));
  let_others_go(where);
}

void Block::finish_collective(unsigned number, Collective& collective, int last_lane) {
  const uint32_t present = collective.arrived;
  if (collective.function) collective.function(collective.arguments.data(), present);
  collective.arrived = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (present >> lane & 1 && lane != last_lane) make_ready(number * 32 + lane);
}

void Block::sync_warp(uint32_t mask, Location where) {
  DeviceThread& me = current();
  // By parity: a lane that leaves late must not see what others did before they came to the next one.
  char* sync = &warps_[me.warp].sync[me.warp_sync_phase++ % 2];
  release(sync);
  meet(mask, nullptr, nullptr, Meeting::anywhere, where);
  acquire(sync);
}

int Block::sync_barrier(int id, int threads, Reduction reduction, int value, bool wait_for_others, Location where) {
  if (id < 0 || id >= Barrier::kCount) fail(where, "barrier %d: a block has barriers 0 to 15", id);
  if (threads % 32 != 0 || threads > int(round_up(threads_.size(), 32)))
    fail(where, "barrier %d for %d threads: a multiple of 32 and at most the block's %zu are possible", id, threads, threads_.size());
  Barrier& barrier = barriers_[id];
  if (barrier.arrived == 0) {
    barrier.threads = threads;
    barrier.reduction = reduction;
    barrier.value = reduction == Reduction::all;
  }
  check_same_place(barrier, where);
  if (barrier.threads != threads || barrier.reduction != reduction)
    fail(where, "barrier %d: another thread waits at it for %d threads or with another reduction, at %s:%d", id,
         barrier.threads, barrier.places[0].second.file, barrier.places[0].second.line);

  switch (reduction) {
    case Reduction::none: break;
    case Reduction::all: barrier.value = barrier.value && value; break;
    case Reduction::any: barrier.value = barrier.value || value; break;
    case Reduction::count: barrier.value += value != 0; break;
  }
  const unsigned parity = barrier.phase % 2;  // see sync_warp
  release(&barrier.sync[parity]);
  const int expected = threads == 0 ? live_ : threads;
  if (++barrier.arrived == expected) {
    finish_barrier(barrier);
    if (wait_for_others) let_others_go(where);
  } else if (wait_for_others) {
    barrier.waiting.push_back(current().linear);
    wait(id == 0 ? "__syncthreads" : "a named barrier", where);
  }
  if (wait_for_others) acquire(&barrier.sync[parity]);
  return barrier.result[parity];
}

/// bar.sync is aligned: the lanes of one warp must come to the same one.
void Block::check_same_place(Barrier& barrier, Location where) {
  const unsigned warp = current().warp;
  for (const auto& [other, place] : barrier.places)
    if (other == warp && !same(place, where))
      fail(where, "a barrier in divergent code: other lanes of the warp are at the one at %s:%d", place.file, place.line);
  if (barrier.places.empty() || barrier.places.back().first != warp) barrier.places.emplace_back(warp, where);
}

void Block::finish_barrier(Barrier& barrier) {
  barrier.result[barrier.phase % 2] = barrier.value;
  ++barrier.phase;
  barrier.arrived = 0;
  for (const unsigned thread : barrier.waiting) make_ready(thread);
  barrier.waiting.clear();
  barrier.places.clear();
}

void Block::report_deadlock() {
  constexpr int kShown = 16;
  std::fprintf(stderr, "emulation: deadlock in block (%u,%u,%u): %d threads wait\n", info_.index.x, info_.index.y,
               info_.index.z, live_);
  int shown = 0;
  for (unsigned i = 0; i < threads_.size();) {  // neighbours that wait at the same place, in one line
    const unsigned first = i;
    const DeviceThread& thread = threads_[first];
    do ++i;
    while (i < threads_.size() && threads_[i].exited == thread.exited && threads_[i].waits_for == thread.waits_for &&
           (thread.exited || same(threads_[i].where, thread.where)));
    if (thread.exited) continue;
    if (++shown > kShown) break;
    std::fprintf(stderr, "  threads %u to %u wait for %s at %s:%d (%s)\n", first, i - 1, thread.waits_for,
                 thread.where.file, thread.where.line, thread.where.function);
  }
  stop();
}

void* Block::static_shared(const void* key, size_t bytes, size_t alignment) {
  size_t total = info_.dynamic_shared_bytes + bytes;
  for (const StaticShared& variable : static_shared_) {
    if (variable.key == key) return variable.memory;
    total += variable.bytes;
  }
  if (total > most_shared_bytes())
    fail(Location::here(), "a block uses %zu bytes of shared memory; it can have %zu", total, most_shared_bytes());
  std::byte* memory = allocate_shared(bytes, std::max(alignment, alignof(std::max_align_t)));
  static_shared_.push_back({key, memory, bytes});
  return memory;
}

bool Block::owns(const void* p, size_t bytes) const {
  const auto* begin = static_cast<const std::byte*>(p);
  const auto inside = [=](const std::byte* memory, size_t size) { return begin >= memory && begin + bytes <= memory + size; };
  return inside(info_.dynamic_shared, info_.dynamic_shared_bytes) ||
         std::any_of(static_shared_.begin(), static_shared_.end(),
                     [&](const StaticShared& variable) { return inside(variable.memory, variable.bytes); });
}

}  // namespace lacuna::emulation

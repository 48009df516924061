#pragma once
// One block of the emulated device: its threads as fibers, the order in which they run, and where they meet.

#include <array>
#include <deque>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "tests/cuda_emulation/execution.h"
#include "tests/cuda_emulation/fiber.h"

namespace lacuna::emulation {

/// The copies of one thread that are under way, oldest first.
struct CopyQueue {
  std::deque<Copy> copies;
  std::deque<size_t> groups;  // sizes of the committed groups; later copies belong to the open one
};

struct DeviceThread : Thread {
  Context context;
  std::unique_ptr<Stack> stack;
  bool exited = false;
  const char* waits_for = nullptr;
  Location where{};
  unsigned warp_sync_phase = 0;
  CopyQueue copies;
};

/// A meeting of lanes of a warp that has begun.
struct Collective {
  uint32_t mask = 0, arrived = 0;
  WarpFunction function = nullptr;
  Meeting meeting = Meeting::anywhere;
  Location where{};
  std::array<void*, 32> arguments;
};

struct WarpState {
  uint32_t live = 0;
  unsigned rank = 0;                      // see Block::choose
  std::array<Collective, 4> collectives;  // more than one at a time when lanes work under disjoint masks
  std::array<char, 2> sync;               // for ThreadSanitizer, by the parity of the phase
};

struct Barrier {
  static constexpr int kCount = 16;
  int arrived = 0, threads = 0;
  Reduction reduction = Reduction::none;
  int value = 0;
  unsigned phase = 0;
  std::array<int, 2> result;  // of the last two phases: a thread may leave late
  std::array<char, 2> sync;
  std::vector<unsigned> waiting;
  std::vector<std::pair<unsigned, Location>> places;  // of each warp that has arrived
};

struct AsyncUnits;

/// Runs the blocks of a grid one after the other, on the OS thread that calls `run`.
class Block {
 public:
  Block(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);
  ~Block();
  Block(const Block&) = delete;

  void run(uint3 index);

  /// What `this_thread` does inside the emulator.
  DeviceThread& current() { return *current_; }
  void wait(const char* what, Location where);  // until make_ready
  void make_ready(unsigned thread) { ready_.push_back(thread); }
  bool coin() { return schedule_.order == Schedule::Order::random && random_() % 2 == 0; }
  /// After the last one came to a meeting: in random order it lets the others go first half of the time.
  void let_others_go(Location where);

  void meet(uint32_t mask, WarpFunction function, void* argument, Meeting meeting, Location where);
  void sync_warp(uint32_t mask, Location where);
  int sync_barrier(int id, int threads, Reduction reduction, int value, bool wait, Location where);

  /// The units of sm_90 beside the threads; a block that never asks for them has none.
  AsyncUnits& units();

  void* static_shared(const void* key, size_t bytes, size_t alignment);
  bool owns(const void* p, size_t bytes) const;

  Counters counters;

 private:
  friend void run_thread();
  struct StaticShared {
    const void* key;
    std::byte* memory;
    size_t bytes;
  };

  DeviceThread* next();
  size_t choose();
  bool perform_copy();
  void exit_thread();
  void leave_meetings(DeviceThread& thread);
  void finish_collective(unsigned number, Collective& collective, int last_lane);
  void finish_barrier(Barrier& barrier);
  void check_same_place(Barrier& barrier, Location where);
  [[noreturn]] void report_deadlock();
  void prepare(uint3 index);
  void clean_up();

  const std::function<void()>& kernel_;
  const Schedule schedule_;
  BlockInfo info_{};
  std::vector<DeviceThread> threads_;
  std::vector<WarpState> warps_;
  std::array<Barrier, Barrier::kCount> barriers_;
  std::vector<StaticShared> static_shared_;
  std::unique_ptr<AsyncUnits> units_;
  std::deque<unsigned> ready_;
  int live_ = 0;
  DeviceThread* current_ = nullptr;
  Context os_thread_;
  std::minstd_rand random_;
  bool uneven_ = false;       // whether ranks of warps count
  char start_ = 0, end_ = 0;  // for ThreadSanitizer: before every thread of a block, after all
};

/// What a block can have on the emulated device, static and dynamic.
size_t most_shared_bytes();

/// Ends the process after a report.
[[noreturn]] void stop();

/// The block whose threads run on this OS thread.
extern thread_local Block* running;

}  // namespace lacuna::emulation

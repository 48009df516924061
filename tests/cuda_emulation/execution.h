#pragma once
// What the emulated device offers to the code of a kernel: the running thread and its block, and the two ways in which
// threads meet, barriers and warp collectives. The rest of the device half of the language is built on these.
//
// Every CUDA thread is a fiber. The fibers of a block share one OS thread and run one at a time until they meet others;
// blocks run in parallel on several OS threads.

#include <cuda_bf16.h>  // types, and conversions that the host can call
#include <cuda_fp16.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <functional>

#include "core/device.h"

namespace lacuna::emulation {

/// A place in the source, taken by a default argument. (clang 14 lacks std::source_location.)
struct Location {
  const char* file;
  const char* function;
  int line;
  static constexpr Location here(const char* file = __builtin_FILE(), const char* function = __builtin_FUNCTION(),
                                 int line = __builtin_LINE()) {
    return {file, function, line};
  }
};

/// The order in which the threads of a block run. Each is a legal one; a correct kernel gives the same result in all.
struct Schedule {
  enum class Order { forward, reverse, random };
  Order order = Order::forward;
  uint64_t seed = 1;   // of the random order
  int os_threads = 0;  // blocks run on that many; 0 stands for one per processor
};

/// The schedule of the launches to come. It starts as the environment variable LACUNA_EMULATION says: `forward` (also
/// when it is not set), `reverse`, `random:<seed>`.
Schedule& schedule();

/// Totals over all launches of the process.
struct Counters {
  uint64_t ldmatrix_phases = 0;  // eight rows of 16 bytes each
  uint64_t bank_conflicts = 0;   // rows that had to wait since another of their phase lies in the same banks
  uint64_t wgmma = 0;            // of warps: four a warpgroup
  uint64_t launches = 0;         // of kernels
};
Counters counters();

struct Thread {
  uint3 index;  // threadIdx
  unsigned linear, lane, warp;
};

struct BlockInfo {
  uint3 index;  // blockIdx
  dim3 block, grid;
  std::byte* dynamic_shared;
  size_t dynamic_shared_bytes;
};

inline thread_local const Thread* this_thread = nullptr;
inline thread_local const BlockInfo* this_block = nullptr;

/// Reports a mistake of the kernel, with block, thread and source line, and aborts the process.
[[noreturn]] void fail(Location where, const char* format, ...) __attribute__((format(printf, 2, 3)));

/// The lanes that take part in a collective operation of a warp, each with its argument.
template <class Lane>
struct Warp {
  void* const* arguments;  // [32]
  uint32_t mask;
  bool has(int lane) const { return mask >> lane & 1; }
  bool full() const { return mask == 0xffffffffu; }
  Lane& operator[](int lane) const { return *static_cast<Lane*>(arguments[lane]); }
};

/// Whether PTX demands that the lanes meet at the same instruction (.aligned), or only at the same kind of one.
enum class Meeting { anywhere, aligned };

using WarpFunction = void (*)(void* const* arguments, uint32_t mask);
void meet_warp(uint32_t mask, WarpFunction function, void* argument, Meeting meeting, Location where);

/// Waits until every live lane of `mask` has come here; the last one runs `function` over the arguments of all. An
/// argument may point into its lane's stack. Orders no memory accesses.
template <class Lane, void (*function)(const Warp<Lane>&)>
void warp_collective(uint32_t mask, Lane& lane, Meeting meeting, Location where) {
  const WarpFunction erased = [](void* const* arguments, uint32_t present) { function({arguments, present}); };
  meet_warp(mask, erased, &lane, meeting, where);
}

/// __syncwarp: a collective that also orders memory accesses.
void sync_warp(uint32_t mask, Location where);

/// What __syncthreads_and, _or and _count compute, besides being barriers.
enum class Reduction { none, all, any, count };

/// Barrier `id` of the block, for `threads` threads (0: all that live). `arrive` does not wait for the others.
int sync_barrier(int id, int threads, Reduction reduction, int value, Location where);
void arrive_at_barrier(int id, int threads, Location where);

/// Gives the others a turn, in a loop that waits for what they write.
void yield(Location where);

/// __threadfence: orders this thread's accesses before it against those after another thread's later fence.
void fence();

/// The block's copy of a __shared__ variable; `key` stands for its declaration. Filled with 0xFF, a NaN in any type.
void* static_shared(const void* key, size_t bytes, size_t alignment);

/// Fails unless [p, p + bytes) is shared memory of the block, aligned to `alignment`.
void check_shared(const void* p, size_t bytes, size_t alignment, const char* what, Location where);

/// cp.async of one thread: issued, closed into groups, and performed at the last moment.
struct Copy {
  void* to;
  const void* from;
  int bytes, valid_bytes;  // the rest is filled with zeros
};
void issue_copy(const Copy& copy);
void commit_copies();
/// The next copy to perform so that at most `groups_left` groups stay in flight; false when there is none.
bool next_copy(int groups_left, Copy& copy);

void count_ldmatrix(int phases, int conflicts);

/// Runs `kernel`, its parameters bound, once per thread of the grid, as soon as the stream comes to it. Throws Error,
/// naming `where`, for a configuration that no device of sm_90 accepts.
void launch(Stream stream, dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> kernel, Location where);

}  // namespace lacuna::emulation

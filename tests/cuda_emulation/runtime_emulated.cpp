#include "tests/cuda_emulation/runtime_emulated.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tests/cuda_emulation/sanitizers.h"

namespace lacuna::emulation {
namespace {

struct Work {
  std::function<void()> run;
  bool frees = false;  // must happen even if the work around it does not
};

struct Queue {
  std::deque<Work> waiting;
  std::deque<Work>* recording = nullptr;  // where work goes while a graph is recorded

  void add(Work work) { (recording ? *recording : waiting).push_back(std::move(work)); }

  void drain() {
    check(!recording, "cuda: the stream is being recorded, so nobody can wait for it");
    while (!waiting.empty()) {
      const Work work = std::move(waiting.front());
      waiting.pop_front();
      work.run();
    }
  }
};

struct Machine {
  Queue compute, copy;
  std::unordered_map<void*, int64_t> blocks;
  int64_t bytes = 0;
  std::string problem, kernel_problem, graph_problem;  // none when empty
  gpu::DeviceProperties properties{.name = "emulated GPU",
                                   .major = 9,
                                   .minor = 0,
                                   .multiprocessors = 4,
                                   .memory_bytes = int64_t{2} << 30,
                                   .shared_bytes = 227 * 1024};
};

/// What the environment says of the GPU, for programs: LACUNA_EMULATED_GPU="<what>=<value>", what as below.
void take_environment(Machine& machine) {
  const char* const variable = std::getenv("LACUNA_EMULATED_GPU");
  if (!variable) return;
  const std::string text = variable, what = text.substr(0, text.find('=')), value = text.substr(what.size() + 1);
  if (what == "no-device") machine.problem = value;
  if (what == "no-kernels") machine.kernel_problem = value;
  if (what == "no-graphs") machine.graph_problem = value;
  if (what == "major") machine.properties.major = std::stoi(value);
  if (what == "memory") machine.properties.memory_bytes = std::stoll(value);
}

Machine& machine() {
  static auto* const one = [] {
    auto* const machine = new Machine;  // tensors with static lifetime may outlive main
    take_environment(*machine);
    return machine;
  }();
  return *one;
}

size_t round_up(size_t bytes, size_t multiple) { return (bytes + multiple - 1) / multiple * multiple; }

/// Device memory lies between two pages that nobody may touch, and ends, but for its alignment, where the second
/// begins: a kernel that leaves it faults. With AddressSanitizer it comes from the heap, which that watches to the
/// byte.
constexpr size_t kPage = 4096, kAlignment = 256;

void* map_memory(size_t bytes) {
  if (void* block = nullptr; under_asan()) return posix_memalign(&block, kAlignment, bytes) == 0 ? block : nullptr;
  const size_t room = round_up(bytes, kPage);
  void* const all = mmap(nullptr, room + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (all == MAP_FAILED) return nullptr;
  std::byte* const first = static_cast<std::byte*>(all) + kPage;
  if (mprotect(first, room, PROT_READ | PROT_WRITE) != 0) return nullptr;
  return first + room - round_up(bytes, kAlignment);
}

void unmap_memory(void* block, size_t bytes) {
  if (under_asan()) return std::free(block);
  const size_t room = round_up(bytes, kPage);
  munmap(static_cast<std::byte*>(block) + round_up(bytes, kAlignment) - room - kPage, room + 2 * kPage);
}

Queue& queue_of(Stream stream) { return *static_cast<Queue*>(stream.native); }

}  // namespace

void enqueue(Stream stream, std::function<void()> work) {
  if (!stream.native) return work();
  queue_of(stream).add({std::move(work)});
}

size_t shared_bytes_of_device() { return static_cast<size_t>(machine().properties.shared_bytes); }

NoDevice::NoDevice(const std::string& reason) { machine().problem = reason; }
NoDevice::~NoDevice() { machine().problem.clear(); }

NoGraphs::NoGraphs(const std::string& reason) { machine().graph_problem = reason; }
NoGraphs::~NoGraphs() { machine().graph_problem.clear(); }

ComputeCapability::ComputeCapability(int major, int minor) : before_(machine().properties) {
  const int capability = 10 * major + minor;  // CUDA C++ Programming Guide, "Technical Specifications"
  machine().properties.major = major;
  machine().properties.minor = minor;
  machine().properties.shared_bytes = 1024 * (capability == 80 || capability == 87   ? 163
                                              : capability < 90 || capability >= 120 ? 99
                                                                                     : 227);
}

ComputeCapability::~ComputeCapability() { machine().properties = before_; }

std::string why_no_code() { return machine().kernel_problem; }

int64_t bytes_in_use() { return machine().bytes; }

}  // namespace lacuna::emulation

namespace lacuna::gpu {

using emulation::machine;
using emulation::Queue;
using emulation::queue_of;
using emulation::Work;

int device_count() { return machine().problem.empty() ? 1 : 0; }
std::string why_no_device() { return machine().problem; }
const DeviceProperties& properties(Device) { return machine().properties; }

void check_usable(Device device) {
  check(machine().problem.empty(), device, ": ", machine().problem);
  check(device.index == 0, device, ": no such device; there are 1");
  check_architecture(device, machine().properties);
}

int64_t free_bytes(Device) { return machine().properties.memory_bytes - machine().bytes; }

std::string versions() { return "emulated CUDA"; }

void* allocate(Device, int64_t bytes) {
  if (machine().bytes + bytes > machine().properties.memory_bytes && !machine().compute.recording)
    machine().compute.drain();  // frees wait there
  if (machine().bytes + bytes > machine().properties.memory_bytes) return nullptr;
  void* const block = emulation::map_memory(static_cast<size_t>(bytes));
  if (!block) return nullptr;
  std::memset(block, 0xff, static_cast<size_t>(bytes));
  machine().blocks[block] = bytes;
  machine().bytes += bytes;
  return block;
}

void deallocate(Device, void* block) noexcept {
  machine().compute.add({[block] {
                           const int64_t bytes = machine().blocks.at(block);
                           machine().bytes -= bytes;
                           machine().blocks.erase(block);
                           emulation::unmap_memory(block, static_cast<size_t>(bytes));
                         },
                         /*frees=*/true});
}

bool reuses_blocks() { return false; }

PinnedBuffer::PinnedBuffer(int64_t bytes)
    : data_(static_cast<std::byte*>(std::malloc(static_cast<size_t>(bytes)))), bytes_(bytes) {
  std::memset(data_, 0xff, static_cast<size_t>(bytes));
}

PinnedBuffer::~PinnedBuffer() { std::free(data_); }

void copy_bytes(Stream stream, void* to, const void* from, int64_t bytes) {
  emulation::enqueue(stream, [=] { std::memmove(to, from, static_cast<size_t>(bytes)); });
}

void set_bytes(Stream stream, void* to, uint8_t value, int64_t bytes) {
  emulation::enqueue(stream, [=] { std::memset(to, value, static_cast<size_t>(bytes)); });
}

Stream compute_stream(Device device) {
  check_usable(device);
  return {device, &machine().compute};
}

Stream copy_stream(Device device) {
  check_usable(device);
  return {device, &machine().copy};
}

void synchronize(Stream stream) { queue_of(stream).drain(); }

// --- Event

struct Event::State {
  Queue* queue = nullptr;
  std::shared_ptr<bool> reached;
};

Event::Event() : state_(std::make_unique<State>()) {}
Event::~Event() = default;

void Event::record(Stream stream) {
  state_->queue = &queue_of(stream);
  state_->reached = std::make_shared<bool>(false);
  emulation::enqueue(stream, [reached = state_->reached] { *reached = true; });
}

namespace {

void drain_until(Queue* queue, const std::shared_ptr<bool>& reached) {
  while (reached && !*reached) {
    check(!queue->waiting.empty(), "event: the stream that would reach it is empty");
    const Work work = std::move(queue->waiting.front());
    queue->waiting.pop_front();
    work.run();
  }
}

}  // namespace

void Event::make_wait(Stream stream) const {
  emulation::enqueue(stream, [queue = state_->queue, reached = state_->reached] { drain_until(queue, reached); });
}

void Event::synchronize() const { drain_until(state_->queue, state_->reached); }

double Event::milliseconds_since(const Event&) const { return 0.0; }  // nothing here takes a GPU's time

// --- Graph

struct Graph::State {
  int64_t nodes = 0;
  std::string why_rebuilt;
  std::vector<Work> kept;   // to be replayed
  std::vector<Work> frees;  // of the memory that those use

  void free_kept() {
    for (Work& work : frees) machine().compute.add(std::move(work));
    frees.clear();
    kept.clear();
  }
};

Graph::Graph() : state_(std::make_unique<State>()) {}
Graph::~Graph() { state_->free_kept(); }

void Graph::run(Stream stream, const std::function<void()>& enqueue, bool replayable) {
  state_->free_kept();
  Queue& queue = queue_of(stream);
  std::deque<Work> recorded;
  check(!queue.recording, "graph: recording cannot begin: the stream is being recorded");
  queue.recording = &recorded;
  std::exception_ptr failure;
  try {
    enqueue();
    check(machine().graph_problem.empty(), "graph: ", machine().graph_problem);
  } catch (...) {
    failure = std::current_exception();
  }
  queue.recording = nullptr;
  const int64_t nodes_before = std::exchange(state_->nodes, 0);
  for (Work& work : recorded) {
    state_->nodes += !work.frees;
    if (replayable && !failure) {
      (work.frees ? state_->frees : state_->kept).push_back(work);
      if (work.frees) continue;
    }
    if (!failure || work.frees) queue.add(std::move(work));
  }
  if (failure) std::rethrow_exception(failure);
  const bool updated = nodes_before == 0 || nodes_before == state_->nodes;
  state_->why_rebuilt = updated ? "" : concat("it had ", nodes_before, " nodes, now ", state_->nodes);
}

void Graph::replay(Stream stream) {
  check(!state_->kept.empty(), "graph: nothing was recorded to be replayed");
  for (const Work& work : state_->kept) queue_of(stream).add(work);
}

int64_t Graph::nodes() const { return state_->nodes; }
std::string Graph::why_rebuilt() const { return state_->why_rebuilt; }

// --- Errors

void fail_cuda(int status, const std::string& what) { throw GpuError(concat(what, ": CUDA error ", status)); }

}  // namespace lacuna::gpu

#include "core/cuda/runtime.h"

#include "core/dispatch.h"

#if LACUNA_HAS_CUDA
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <utility>
#include <vector>

namespace lacuna::gpu {
namespace {

std::string version_text(int version) { return concat(version / 1000, '.', version % 1000 / 10); }

/// What this process can use, found once.
struct Devices {
  std::vector<DeviceProperties> properties;
  std::string problem;  // why there are none

  Devices() {
    int driver = 0, count = 0;
    cudaDriverGetVersion(&driver);
    const cudaError_t status = cudaGetDeviceCount(&count);
    cudaGetLastError();  // an error is reported below, not by the next call
    if (driver == 0) {
      problem = "no NVIDIA driver is installed on this machine";
    } else if (status == cudaErrorInsufficientDriver) {
      problem = concat("the NVIDIA driver is too old: it supports CUDA ", version_text(driver),
                       ", this build needs CUDA ", version_text(CUDART_VERSION));
    } else if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0)) {
      const char* const visible = std::getenv("CUDA_VISIBLE_DEVICES");
      problem = concat("the NVIDIA driver sees no GPU", visible ? concat(" (CUDA_VISIBLE_DEVICES=", visible, ")") : "");
    } else if (status != cudaSuccess) {
      problem = concat("the NVIDIA driver reports ", cudaGetErrorName(status), " (", cudaGetErrorString(status), ")");
    }
    if (!problem.empty()) return;
    for (int index = 0; index < count; ++index) {
      cudaDeviceProp p{};
      check_cuda(cudaGetDeviceProperties(&p, index), "cuda: properties of device ", index);
      properties.push_back({.name = p.name,
                            .major = p.major,
                            .minor = p.minor,
                            .multiprocessors = p.multiProcessorCount,
                            .memory_bytes = static_cast<int64_t>(p.totalGlobalMem),
                            .shared_bytes = static_cast<int64_t>(p.sharedMemPerBlockOptin)});
    }
  }
};

const Devices& devices() {
  static const Devices all;
  return all;
}

cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream.native); }

void make_current(Device device) {
  thread_local int current = -1;
  if (current == device.index) return;
  check_cuda(cudaSetDevice(device.index), "cuda: cannot use ", device);
  current = device.index;
}

struct Streams {
  cudaStream_t compute = nullptr, copy = nullptr;
};

const Streams& streams_of(Device device) {
  static std::mutex mutex;
  static std::vector<Streams> all(devices().properties.size());
  make_current(device);
  const std::lock_guard lock(mutex);
  Streams& streams = all[static_cast<size_t>(device.index)];
  if (!streams.compute)
    for (cudaStream_t* stream : {&streams.compute, &streams.copy})
      check_cuda(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking), "cuda: a stream on ", device);
  return streams;
}

// Blocks that were to be freed while a graph was being recorded: what was recorded may still use them.
thread_local bool t_recording = false;
thread_local std::vector<std::pair<Device, void*>> t_freed_while_recording;

}  // namespace

int device_count() { return static_cast<int>(devices().properties.size()); }
std::string why_no_device() { return devices().problem; }

const DeviceProperties& properties(Device device) { return devices().properties.at(static_cast<size_t>(device.index)); }

void check_usable(Device device) {
  check(devices().problem.empty(), device, ": ", devices().problem);
  check(device.index >= 0 && device.index < device_count(), device, ": no such device; there are ", device_count());
  check_architecture(device, properties(device));
}

int64_t free_bytes(Device device) {
  make_current(device);
  size_t free = 0, all = 0;
  check_cuda(cudaMemGetInfo(&free, &all), "cuda: free memory of ", device);
  return static_cast<int64_t>(free);
}

std::string versions() {
  int driver = 0;
  cudaDriverGetVersion(&driver);
  return concat("CUDA runtime ", version_text(CUDART_VERSION), ", driver ", version_text(driver));
}

void* allocate(Device device, int64_t bytes) {
  make_current(device);
  void* block = nullptr;
  const cudaError_t status = cudaMalloc(&block, static_cast<size_t>(bytes));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  check_cuda(status, "cuda: ", bytes, " bytes on ", device);
  return block;
}

void deallocate(Device device, void* block) noexcept {
  if (t_recording)
    t_freed_while_recording.emplace_back(device, block);
  else if (const cudaError_t status = cudaFree(block);  // waits for the device; at exit it may be gone, with the block
           status != cudaSuccess && status != cudaErrorCudartUnloading)
    std::fprintf(stderr, "cuda: freeing memory of cuda:%d: %s\n", device.index, cudaGetErrorString(status));
}

bool reuses_blocks() {
  const char* const off = std::getenv("LACUNA_NO_MEMORY_CACHE");
  return !off || std::string(off) != "1";
}

PinnedBuffer::PinnedBuffer(int64_t bytes) : bytes_(bytes) {
  void* data = nullptr;
  check_cuda(cudaHostAlloc(&data, static_cast<size_t>(bytes), cudaHostAllocPortable), "cuda: ", bytes,
             " bytes of pinned host memory");
  data_ = static_cast<std::byte*>(data);
}

PinnedBuffer::~PinnedBuffer() { cudaFreeHost(data_); }

void copy_bytes(Stream stream, void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return;
  check_cuda(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, native(stream)), "copy: ", bytes,
             " bytes on ", stream.device);
}

void set_bytes(Stream stream, void* to, uint8_t value, int64_t bytes) {
  if (bytes == 0) return;
  check_cuda(cudaMemsetAsync(to, value, static_cast<size_t>(bytes), native(stream)), "fill: ", bytes, " bytes on ",
             stream.device);
}

Stream compute_stream(Device device) {
  check_usable(device);
  return {device, streams_of(device).compute};
}

Stream copy_stream(Device device) {
  check_usable(device);
  return {device, streams_of(device).copy};
}

void synchronize(Stream stream) {
  check_cuda(cudaStreamSynchronize(native(stream)), "cuda: work on ", stream.device,
             " failed (CUDA_LAUNCH_BLOCKING=1 in the environment makes its operation report it)");
}

// --- Event

struct Event::State {
  cudaEvent_t event = nullptr;
};

Event::Event() : state_(std::make_unique<State>()) {}

Event::~Event() {
  if (state_->event) cudaEventDestroy(state_->event);
}

void Event::record(Stream stream) {
  if (!state_->event) check_cuda(cudaEventCreate(&state_->event), "cuda: an event on ", stream.device);
  check_cuda(cudaEventRecord(state_->event, native(stream)), "cuda: recording an event on ", stream.device);
}

void Event::make_wait(Stream stream) const {
  if (state_->event)
    check_cuda(cudaStreamWaitEvent(native(stream), state_->event, 0), "cuda: waiting for an event on ", stream.device);
}

void Event::synchronize() const {
  if (state_->event) check_cuda(cudaEventSynchronize(state_->event), "cuda: work before an event failed");
}

double Event::milliseconds_since(const Event& earlier) const {
  float milliseconds = 0.0f;
  check_cuda(cudaEventElapsedTime(&milliseconds, earlier.state_->event, state_->event),
             "cuda: time between two events");
  return milliseconds;
}

// --- Graph

struct Graph::State {
  cudaGraphExec_t executable = nullptr;
  size_t nodes = 0;
  std::string why_rebuilt;
  std::vector<std::pair<Device, void*>> blocks;  // that were freed while it was recorded, and replays use
};

Graph::Graph() : state_(std::make_unique<State>()) {}

Graph::~Graph() {
  if (state_->executable) cudaGraphExecDestroy(state_->executable);
  for (const auto& [device, block] : state_->blocks) deallocate(device, block);
}

namespace {

/// The work that `enqueue` gives the stream, recorded. Relaxed mode: the allocator may ask for memory meanwhile.
cudaGraph_t record(cudaStream_t stream, const std::function<void()>& enqueue) {
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "graph: recording cannot begin");
  t_recording = true;
  cudaGraph_t graph = nullptr;
  try {
    enqueue();
  } catch (...) {
    t_recording = false;
    cudaStreamEndCapture(stream, &graph);
    cudaGetLastError();
    if (graph) cudaGraphDestroy(graph);
    throw;
  }
  t_recording = false;
  check_cuda(cudaStreamEndCapture(stream, &graph), "graph: the work cannot be recorded");
  return graph;
}

}  // namespace

void Graph::run(Stream stream, const std::function<void()>& enqueue, bool replayable) {
  struct FreesDeferred {  // until the graph is launched or given up; with replays, until they are over
    bool keep;
    std::vector<std::pair<Device, void*>>& kept;
    ~FreesDeferred() {
      for (const auto& [device, block] : std::exchange(t_freed_while_recording, {})) {
        if (keep)
          kept.emplace_back(device, block);
        else
          deallocate(device, block);
      }
    }
  } const frees_deferred{replayable, state_->blocks};
  const cudaGraph_t graph = record(native(stream), enqueue);
  cudaError_t status = cudaGraphGetNodes(graph, nullptr, &state_->nodes);
  state_->why_rebuilt.clear();
  if (status == cudaSuccess && state_->executable) {
    cudaGraphExecUpdateResultInfo info{};
    const cudaError_t updated = cudaGraphExecUpdate(state_->executable, graph, &info);
    if (updated != cudaSuccess) {
      cudaGetLastError();
      state_->why_rebuilt = concat(cudaGetErrorName(updated), ", result ", static_cast<int>(info.result));
      cudaGraphExecDestroy(state_->executable);
      state_->executable = nullptr;
    }
  }
  if (status == cudaSuccess && !state_->executable) status = cudaGraphInstantiate(&state_->executable, graph, 0);
  cudaGraphDestroy(graph);
  if (status == cudaSuccess) status = cudaGraphLaunch(state_->executable, native(stream));
  check_cuda(status, "graph: ", state_->nodes, " nodes on ", stream.device);
}

void Graph::replay(Stream stream) {
  check(state_->executable != nullptr, "graph: nothing was recorded");
  check_cuda(cudaGraphLaunch(state_->executable, native(stream)), "graph: ", state_->nodes, " nodes on ",
             stream.device);
}

int64_t Graph::nodes() const { return static_cast<int64_t>(state_->nodes); }
std::string Graph::why_rebuilt() const { return state_->why_rebuilt; }

// --- Errors

void fail_cuda(int status, const std::string& what) {
  const auto error = static_cast<cudaError_t>(status);
  throw GpuError(concat(what, ": ", cudaGetErrorName(error), " (", cudaGetErrorString(error), ")"));
}

}  // namespace lacuna::gpu

#else  // the CPU alone: no devices, so nobody gets as far as using one

namespace lacuna::gpu {

namespace {
[[noreturn]] void fail_without_cuda() { fail("cuda: ", why_no_device()); }
}  // namespace

int device_count() { return 0; }
std::string why_no_device() { return "this build has the CPU alone"; }
const DeviceProperties& properties(Device) { fail_without_cuda(); }
void check_usable(Device device) { fail(device, ": ", why_no_device()); }
int64_t free_bytes(Device) { return 0; }
std::string versions() { return "no CUDA"; }

void* allocate(Device, int64_t) { fail_without_cuda(); }
void deallocate(Device, void*) noexcept {}
bool reuses_blocks() { return true; }
PinnedBuffer::PinnedBuffer(int64_t) { fail_without_cuda(); }
PinnedBuffer::~PinnedBuffer() = default;
void copy_bytes(Stream, void*, const void*, int64_t) { fail_without_cuda(); }
void set_bytes(Stream, void*, uint8_t, int64_t) { fail_without_cuda(); }

Stream compute_stream(Device) { fail_without_cuda(); }
Stream copy_stream(Device) { fail_without_cuda(); }
void synchronize(Stream) { fail_without_cuda(); }

struct Event::State {};
Event::Event() = default;
Event::~Event() = default;
void Event::record(Stream) { fail_without_cuda(); }
void Event::make_wait(Stream) const { fail_without_cuda(); }
void Event::synchronize() const { fail_without_cuda(); }
double Event::milliseconds_since(const Event&) const { fail_without_cuda(); }

struct Graph::State {};
Graph::Graph() = default;
Graph::~Graph() = default;
void Graph::run(Stream, const std::function<void()>&, bool) { fail_without_cuda(); }
void Graph::replay(Stream) { fail_without_cuda(); }
int64_t Graph::nodes() const { return 0; }
std::string Graph::why_rebuilt() const { return ""; }

void fail_cuda(int, const std::string& what) { fail(what); }

}  // namespace lacuna::gpu
#endif

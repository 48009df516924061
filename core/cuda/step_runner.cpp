#include "core/cuda/step_runner.h"

#include <cstdio>

namespace lacuna {

void StepRunner::run(const std::function<void()>& enqueue, const std::function<void()>& undo) {
  if (device_ == kCpu || first_ || !graphs_) {
    first_ = false;
    return enqueue();
  }
  const Stream stream = gpu::compute_stream(device_);
  if (recorded_ && recording_ == Recording::once) return graph_.replay(stream);
  try {
    graph_.run(stream, enqueue, /*replayable=*/recording_ == Recording::once);
    recorded_ = true;
  } catch (const Error& error) {
    graphs_ = false;
    const std::string line = concat("note: steps run kernel by kernel, not as a CUDA graph: ", error.what());
    if (say_)
      say_(line);
    else
      std::fprintf(stderr, "%s\n", line.c_str());
    undo();
    enqueue();
  }
}

}  // namespace lacuna

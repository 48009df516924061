#include "core/cuda/step_runner.h"

#include <cstdio>

namespace lacuna {

void StepRunner::run(const std::function<void()>& enqueue, const std::function<void()>& undo, size_t part) {
  while (parts_.size() <= part) parts_.emplace_back();
  Part& p = parts_[part];
  if (device_ == kCpu || p.first || !graphs_) {
    p.first = false;
    return enqueue();
  }
  const Stream stream = gpu::compute_stream(device_);
  if (p.recorded && recording_ == Recording::once) return p.graph.replay(stream);
  try {
    p.graph.run(stream, enqueue, /*replayable=*/recording_ == Recording::once);
    p.recorded = true;
  } catch (const Error& error) {
    graphs_ = false;
    say(concat("note: steps run kernel by kernel, not as a CUDA graph: ", error.what()));
    undo();
    enqueue();
    return;
  }
  constexpr int kOften = 3;  // it may happen when memory moves, but not all the time
  if (const std::string why = p.graph.why_rebuilt(); !why.empty() && ++p.rebuilt == kOften)
    say(concat("note: CUDA builds the graph of a step anew instead of updating it, which costs time: ", why));
}

void StepRunner::say(const std::string& line) const {
  if (say_)
    say_(line);
  else
    std::fprintf(stderr, "%s\n", line.c_str());
}

}  // namespace lacuna

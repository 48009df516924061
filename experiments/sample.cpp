// The command sample: draws from a checkpoint.

#include <algorithm>
#include <chrono>

#include <fmt/format.h>

#include "core/error.h"
#include "core/file.h"
#include "experiments/console.h"
#include "experiments/experiment.h"
#include "experiments/parse.h"
#include "experiments/samples.h"
#include "models/sampler.h"

namespace lacuna {
namespace fs = std::filesystem;
namespace {

// Longest text that is drawn when nobody says how long.
constexpr int64_t kTextLength = 1024;

// Beside the run that the weights are of, or in the current folder; with a number that is free.
fs::path free_path(const fs::path& weights, const std::string& extension) {
  const fs::path run = weights.parent_path().parent_path().parent_path();  // <run>/checkpoints/step-00000001/
  const fs::path folder = fs::is_directory(run / "samples") ? run / "samples" : fs::path(".");
  int k = 1;
  while (fs::exists(folder / concat("sample-", k, extension))) ++k;
  return folder / concat("sample-", k, extension);
}

}  // namespace

int sample_command(const Experiment& experiment, const Options& options) {
  const Tensor prompt = read_prompt(options.prompt, experiment.medium);
  const LoadedModel loaded = load_model(experiment, options);
  const int64_t n_ctx = loaded.config.model.n_ctx, prompt_length = prompt.defined() ? prompt.numel() : 0;
  const int64_t whole = experiment.medium == Medium::text ? std::min(n_ctx, prompt_length + kTextLength) : n_ctx;
  const int64_t length = options.length.value_or(whole),
                count = options.count.value_or(loaded.config.train.sample_count);
  check_usage(length <= n_ctx, "--length must be at most the model's n_ctx = ", n_ctx, ", got ", length);
  check_usage(prompt_length < length, "--prompt has ", prompt_length, " tokens, which leaves nothing of ", length,
              " to draw");

  Console console;
  const fs::path path =
      options.out.empty() ? free_path(loaded.weights, sample_extension(experiment.medium)) : options.out;
  AtomicFile{path};  // if nothing can be written there it fails now, not after hours of drawing
  const auto begin = std::chrono::steady_clock::now();
  const Tensor tokens = sample(
      *loaded.model,
      {.count = std::max<int64_t>(count, 1),
       .length = length,
       .temperature = options.temperature.value_or(loaded.config.train.temperature),
       .seed = loaded.config.train.seed},
      prompt, [&](int64_t done) { console.progress("sampling", done, length, ""); },
      [&](const std::string& line) { console.print(line); });
  const double elapsed_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  write_samples(path, tokens, experiment.medium);
  if (experiment.medium == Medium::text)
    console.print(printable({reinterpret_cast<const char*>(tokens.data<uint8_t>()), static_cast<size_t>(length)}));
  console.print(fmt::format("{} of {} tokens in {} from {}: {}", tokens.dim(0), length, format_seconds(elapsed_s),
                            loaded.weights.string(), path.string()));
  return 0;
}

}  // namespace lacuna

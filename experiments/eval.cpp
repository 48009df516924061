// The command eval: bits per dim of a checkpoint.

#include <chrono>

#include <fmt/format.h>

#include "core/error.h"
#include "experiments/console.h"
#include "experiments/evaluate.h"
#include "experiments/experiment.h"
#include "experiments/parse.h"

namespace lacuna {

int eval_command(const Experiment& experiment, const Options& options) {
  check_usage(!options.min_context || experiment.medium == Medium::text,
              "--min-context slides over a text; images are scored whole");
  LoadedModel loaded = load_model(experiment, options);
  const std::unique_ptr<Dataset> data = open_dataset(experiment, loaded.config);
  Console console;
  console.print(concat("weights: ", loaded.weights.string(), "\ndata: ", data->description()));
  if (loaded.state && loaded.state->data_fingerprint != data->fingerprint())
    console.print("note: these weights were trained on other data, " + loaded.state->data_fingerprint);

  const auto begin = std::chrono::steady_clock::now();
  const Evaluation result =
      evaluate(*loaded.model, *data,
               {.split = parse_split(options.split),
                .windows = options.windows.value_or(0),
                .min_context = options.min_context,
                .progress = [&](int64_t done, int64_t total) { console.progress("evaluating", done, total, ""); }});
  const double elapsed_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  console.print(
      fmt::format("{}: {:.4f} {} over {} {}{}{} ({})", options.split, result.bits_per_dim,
                  experiment.medium == Medium::text ? "bits per byte" : "bits per dim", format_count(result.n),
                  experiment.medium == Medium::text ? "bytes" : "dims",
                  options.windows ? fmt::format(", the first {} sequences", *options.windows) : "",
                  options.min_context ? fmt::format(", at least {} bytes before each", *options.min_context) : "",
                  format_seconds(elapsed_s)));
  return 0;
}

}  // namespace lacuna

// The command parity: one forward and backward pass, written down to compare with another implementation.

#include "core/archive.h"
#include "core/error.h"
#include "core/file.h"
#include "experiments/console.h"
#include "experiments/environment.h"
#include "experiments/experiment.h"
#include "ops/tokens.h"

namespace lacuna {
namespace {

Tensor read_tokens(const Options& options, const ModelConfig& model) {
  check_usage(!options.tokens.empty(), "parity needs --tokens, a file of raw bytes [batch, n_ctx], or --init-only");
  const std::string bytes = read_file(options.tokens);
  const auto size = static_cast<int64_t>(bytes.size());
  const int64_t batch = options.batch.value_or(size / model.n_ctx);
  check_usage(batch >= 1 && size == batch * model.n_ctx, "--tokens ", options.tokens.string(),
              ": must have batch * n_ctx = ", std::max<int64_t>(batch, 1), " * ", model.n_ctx, " bytes, has ", size);
  const Tensor tokens = from_vector(std::vector<uint8_t>(bytes.begin(), bytes.end()), {batch, model.n_ctx});
  check_tokens("parity", "--tokens", tokens, model.n_vocab);
  return tokens;
}

}  // namespace

int parity_command(const Experiment& experiment, const Options& options) {
  check_usage(!options.out.empty(), "parity needs --out, the safetensors file to write");
  Console console;
  if (options.init_only) {
    const ExperimentConfig config = options.checkpoint.empty()
                                        ? resolve_config(options, experiment.program, experiment.default_preset)
                                        : load_model(experiment, options).config;
    const SparseTransformer model(config.model, config.train.seed, config.train.dtype);
    save_weights(options.out, model);
    console.print(concat("initial weights of seed ", config.train.seed, ": ", options.out.string()));
    return 0;
  }

  LoadedModel loaded;
  if (options.checkpoint.empty()) {
    loaded.config = resolve_config(options, experiment.program, experiment.default_preset);
    loaded.model = std::make_unique<SparseTransformer>(
        loaded.config.model, loaded.config.train.seed, loaded.config.train.dtype,
        choose_device(options.device, {loaded.config.model, loaded.config.train.dtype}));
  } else {
    loaded = load_model(experiment, options);
  }
  const SparseTransformer& model = *loaded.model;
  const Tensor tokens = to_device(read_tokens(options, model.config()), model.parameters().values().device());
  AtomicFile{options.out};  // if nothing can be written there it fails now, not after the passes
  const Run run{.training = false, .seed = loaded.config.train.seed};
  std::vector<NamedTensor> results;
  {
    const GradientMode no_gradients(false);
    results.push_back({"logits", model(tokens, run).value()});
  }
  model.parameters().clear_gradients();
  const Variable loss = model.loss(tokens, run);
  backward(loss);
  results.push_back({"loss", loss.value()});
  for (const Parameters::Entry& entry : model.parameters().entries())
    results.push_back({"grad." + entry.name, entry.variable.grad()});
  write_archive(options.out, results, to_strings(model.config()));
  console.print(concat("loss ", item(loss.value()), " nats over ", tokens.dim(0), " x ", tokens.dim(1),
                       " tokens; logits and ", results.size() - 2, " gradients: ", options.out.string()));
  return 0;
}

}  // namespace lacuna

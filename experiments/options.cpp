#include "experiments/options.h"

#include <algorithm>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include "core/error.h"
#include "core/file.h"
#include "experiments/environment.h"
#include "experiments/flag_errors.h"
#include "experiments/parse.h"
#include "experiments/presets.h"

namespace lacuna {
namespace {

constexpr int64_t kMany = int64_t{1} << 40;

const std::vector<std::pair<std::string, Command>> kCommands{{"train", Command::train},
                                                             {"eval", Command::eval},
                                                             {"sample", Command::sample},
                                                             {"plan", Command::plan},
                                                             {"parity", Command::parity}};

std::string preset_list(const std::string& program) {
  std::string list;
  for (const Preset& preset : all_presets())
    if (preset.config.program == program) list += "  " + preset.config.preset + "\n      " + preset.summary + "\n";
  return list;
}

// `train` as an example begins, with what cannot be left out.
std::string train_example(const ProgramHelp& help) {
  return concat(help.program, " train", help.has_default_data ? "" : " --data FOLDER");
}

std::string program_help(const ProgramHelp& help) {
  const std::string& p = help.program;
  const std::string paper = all_presets().front().config.program == p ? "cifar10-59m-strided" : "enwik8-95m-fixed";
  const std::pair<std::string, std::string> rows[] = {
      {train_example(help), concat("train the ", help.default_preset, " preset")},
      {train_example(help) + " --steps 1000 --set lr=1e-3", "change the recipe"},
      {p + " sample --temperature 0.9", "draw from the run just trained"},
      {concat(p, " plan --preset ", paper, " --device-memory 80G"), "does it fit?"},
  };
  std::string examples;
  for (const auto& [command, purpose] : rows) examples += fmt::format("  {:<62}  {}\n", command, purpose);
  return concat(
      p, ": ", help.summary, "\n\nUsage: ", p, " <command> [flags]\n\nCommands\n",
      "  train   train, evaluate, sample, save; a repeated command resumes\n"
      "  eval    bits per dim of a checkpoint on a split\n"
      "  sample  draw from a checkpoint\n"
      "  plan    parameters, arithmetic and memory of a configuration, before anything is allocated\n"
      "  parity  loss, logits and every gradient for given tokens, to compare with another implementation\n"
      "\nPresets (--preset, default ",
      help.default_preset, ")\n", preset_list(p), "\nExamples\n", examples, "\n", p,
      " <command> --help lists the flags of a command; ", p,
      " --version the version.\n"
      "Exit codes: 0 done or stopped cleanly, 1 failure, 2 misuse or bad configuration, 128+n ended by signal n.\n");
}

// Text of flags that have a number, until it is checked.
struct RawFlags {
  std::string dtype, seed, threads, steps, batch_tokens, zero = "0", weights = "ema", min_context, windows, count,
                                                         length, temperature, batch, ranks, device_memory;
};

void add_common(CLI::App& app, Options& o, RawFlags& raw, const std::string& program) {
  app.add_option("--preset", o.preset, concat("a named configuration; `", program, " --help` lists them"));
  app.add_option("--config", o.config_file, "TOML file with [model], [train] and [data], over the preset");
  app.add_option("--set", o.set, "key=value, over the file; may be repeated")->allow_extra_args(false);
  app.add_option("--device", o.device, "auto (a GPU if there is one), cpu or cuda");
  app.add_option("--dtype", raw.dtype, "of activations: f32, bf16, f16 or f64");
  app.add_option("--seed", raw.seed, "of everything random");
  app.add_option("--threads", raw.threads, "threads of the CPU");
}

void add_checkpoint(CLI::App& app, Options& o, RawFlags& raw) {
  app.add_option(
      "--checkpoint", o.checkpoint,
      "a checkpoint, a run's folder (its newest good one) or a safetensors file; default: the run of the preset");
  app.add_option("--weights", raw.weights, "ema (averaged weights, if the checkpoint has them) or last");
}

void check_device(const std::string& device) {
  check_usage(device == "auto" || device == "cpu" || device == "cuda", "--device must be auto, cpu or cuda, got \"",
              device, "\"", suggestion(device, {"auto", "cpu", "cuda"}));
}

std::optional<int64_t> optional_integer(const char* flag, const std::string& text, int64_t min, int64_t max) {
  if (text.empty()) return std::nullopt;
  return parse_integer(flag, text, min, max);
}

void read_raw(const RawFlags& raw, Options& o) {
  check_device(o.device);
  if (!raw.dtype.empty()) o.dtype = parse_compute_dtype("--dtype", raw.dtype);
  o.seed = optional_integer("--seed", raw.seed, 0, INT64_MAX);
  if (!raw.threads.empty()) o.threads = static_cast<int>(parse_integer("--threads", raw.threads, 1, 1024));
  o.steps = optional_integer("--steps", raw.steps, 1, kMany);
  o.batch_tokens = optional_integer("--batch-tokens", raw.batch_tokens, 1, kMany);
  const int64_t zero = parse_integer("--zero", raw.zero, 0, 3);
  check_usage(zero == 0, "--zero ", zero, ": not in this build, which trains in one process; use --zero 0");
  check_usage(raw.weights == "ema" || raw.weights == "last", "--weights must be ema or last, got \"", raw.weights,
              "\"");
  o.weights = raw.weights == "ema" ? Weights::averaged : Weights::last;
  o.min_context = optional_integer("--min-context", raw.min_context, 0, kMany);
  o.windows = optional_integer("--windows", raw.windows, 1, kMany);
  o.count = optional_integer("--count", raw.count, 1, 4096);
  o.length = optional_integer("--length", raw.length, 1, kMany);
  if (!raw.temperature.empty()) o.temperature = parse_real("--temperature", raw.temperature, 0.0, 100.0);
  o.batch = optional_integer("--batch", raw.batch, 1, 1 << 24);
  if (!raw.ranks.empty()) o.ranks = parse_integer("--ranks", raw.ranks, 1, 1 << 20);
  if (!raw.device_memory.empty()) o.device_memory = parse_bytes("--device-memory", raw.device_memory);
}

std::string read_config(const Options& options) {
  try {
    return read_file(options.config_file);
  } catch (const Error& error) {
    throw UsageError(concat("--config ", error.what()));
  }
}

void apply_overrides(const Options& options, ExperimentConfig& config) {
  if (!options.config_file.empty()) merge_toml(config, read_config(options), options.config_file.string());
  for (const std::string& assignment : options.set) {
    const size_t equals = assignment.find('=');
    check_usage(equals != std::string::npos && equals > 0, "--set must be key=value, got \"", assignment, "\"");
    set_from_text(config, assignment.substr(0, equals), assignment.substr(equals + 1));
  }
  if (options.dtype) config.train.dtype = *options.dtype;
  if (options.seed) config.train.seed = static_cast<uint64_t>(*options.seed);
  if (options.steps) config.train.steps = *options.steps;
  if (!options.data.empty()) config.data_path = options.data;
  if (options.batch_tokens) {
    check_usage(*options.batch_tokens >= config.model.n_ctx, "--batch-tokens ", *options.batch_tokens,
                " is less than one sequence of n_ctx = ", config.model.n_ctx, " tokens");
    config.train.batch = *options.batch_tokens / config.model.n_ctx;
    config.train.micro_batch = std::min(config.train.micro_batch, config.train.batch);
  }
  validate(config);
}

}  // namespace

Options parse_options(const ProgramHelp& help, const std::vector<std::string>& arguments) {
  Options o;
  o.arguments = arguments;
  const std::string& p = help.program;
  check_usage(arguments.size() >= 2, "a command is missing: train, eval, sample, plan or parity; `", p,
              " --help` explains them");
  const std::string& first = arguments[1];
  if (first == "--help" || first == "-h" || first == "help") {
    o.help = program_help(help);
    return o;
  }
  if (first == "--version") {
    o.help = version() + "\n";
    return o;
  }
  std::vector<std::string> names;
  for (const auto& [name, command] : kCommands) {
    names.push_back(name);
    if (name == first) o.command = command;
  }
  check_usage(o.command != Command::help, "unknown command ", first, suggestion(first, names),
              "; the commands are train, eval, sample, plan and parity");

  RawFlags raw;
  CLI::App app;
  app.name(p + " " + first);
  app.set_help_flag("-h,--help", "this text");
  app.allow_extras();
  add_common(app, o, raw, p);
  std::string example;
  switch (o.command) {
    case Command::train:
      app.description("Trains, evaluates, samples and saves. A repeated command goes on where the last one stopped.");
      app.add_option("--data", o.data, help.data_help);
      app.add_option("--out", o.out, concat("folder of the run; default runs/", p, "-<preset>"));
      app.add_option("--steps", raw.steps, "optimizer steps");
      app.add_option("--batch-tokens", raw.batch_tokens, "tokens per optimizer step, rounded down to whole sequences");
      app.add_option("--resume", o.resume,
                     "auto (the newest good checkpoint of --out), none (start over) or a checkpoint");
      app.add_option("--zero", raw.zero, "0: every process holds all optimizer state");
      app.add_flag("--dry-run", o.dry_run, "check configuration and data, print the plan, write nothing");
      app.add_flag("--print-config", o.print_config, "print the configuration as TOML and stop");
      example = concat(train_example(help), " --out runs/long --steps 5000 --set train.lr=1e-3");
      break;
    case Command::eval:
      app.description("Bits per dim of a checkpoint on a split.");
      add_checkpoint(app, o, raw);
      app.add_option("--data", o.data, help.data_help);
      app.add_option("--split", o.split, "valid or test");
      app.add_option("--min-context", raw.min_context,
                     "slide the window so that every scored token has at least this many before it (text)");
      app.add_option("--windows", raw.windows, "only the first so many sequences");
      example = concat(p, " eval --checkpoint runs/", p, "-laptop --split valid");
      break;
    case Command::sample:
      app.description("Draws from a checkpoint.");
      add_checkpoint(app, o, raw);
      app.add_option("--count", raw.count, "sequences to draw");
      app.add_option("--length", raw.length, "tokens of each, at most n_ctx");
      app.add_option("--temperature", raw.temperature, "below 1: likelier samples; 0: the likeliest token always");
      app.add_option("--prompt", o.prompt, help.prompt_help);
      app.add_option("--out", o.out, "file to write; default: the run's samples folder, or the current one");
      example = concat(p, " sample --checkpoint runs/", p, "-laptop --count 4 --temperature 0.9");
      break;
    case Command::plan:
      app.description("Parameters (exact), arithmetic, memory and least time of a configuration, none of which it allocates.");
      app.add_option("--ranks", raw.ranks, "processes that share a step's batch");
      app.add_option("--device-memory", raw.device_memory, "memory of each device, e.g. 80G: does the step fit?");
      app.add_option("--batch", raw.batch, "sequences in one forward and backward pass; default: the configuration's");
      example = concat(p, " plan --set d_model=512 --batch 4 --device-memory 16G");
      break;
    default:
      app.description("One forward and backward pass without dropout; writes loss, logits and grad.<name>.");
      add_checkpoint(app, o, raw);
      app.add_option("--tokens", o.tokens, "raw bytes, uint8 [batch, n_ctx]");
      app.add_option("--batch", raw.batch, "sequences in --tokens; default: what its size says");
      app.add_option("--out", o.out, "safetensors file to write");
      app.add_flag("--init-only", o.init_only, "write the initial weights of a configuration and stop");
      example =
          concat(p, " parity --checkpoint model.safetensors --tokens tokens.bin --dtype f64 --out ours.safetensors");
  }
  app.footer("Example: " + example);

  std::vector<std::string> rest(arguments.rbegin(), arguments.rend() - 2);  // CLI11 takes them last first
  try {
    app.parse(rest);
  } catch (const CLI::CallForHelp&) {
    o.command = Command::help;
    o.help = app.help();
    return o;
  } catch (const CLI::ParseError& error) {
    throw UsageError(explain(error, app));
  }
  const std::vector<std::string> extras = app.remaining();
  if (!extras.empty()) {
    const auto flag =
        std::find_if(extras.begin(), extras.end(), [](const std::string& s) { return s.starts_with("-"); });
    const std::string& unknown = flag == extras.end() ? extras.front() : *flag;
    std::vector<std::string> flags;
    for (const CLI::Option* option : app.get_options())
      for (const std::string& name : option->get_lnames()) flags.push_back("--" + name);
    throw UsageError(concat(flag == extras.end() ? "unexpected argument " : "unknown flag ", unknown,
                            suggestion(unknown.substr(0, unknown.find('=')), flags), "; `", p, " ", first,
                            " --help` lists the flags"));
  }
  for (const CLI::Option* option : app.get_options())  // an unset variable of the shell, most likely
    if (option->get_name() != "--prompt")
      for (const std::string& value : option->results())
        check_usage(!value.empty(), option->get_name(), " must not be empty");
  read_raw(raw, o);
  check_usage(o.command != Command::eval || o.split == "valid" || o.split == "test",
              "--split must be valid or test, got \"", o.split, "\"", suggestion(o.split, {"valid", "test"}));
  return o;
}

ExperimentConfig resolve_config(const Options& options, const std::string& program, const std::string& default_preset) {
  std::string name = options.preset;
  if (name.empty() && !options.config_file.empty())
    name = preset_of_toml(read_config(options), options.config_file.string());
  if (name.empty()) name = default_preset;
  ExperimentConfig config = find_preset(program, name, options.command == Command::plan).config;
  config.program = program;
  apply_overrides(options, config);
  return config;
}

ExperimentConfig resolve_config(const Options& options, const ExperimentConfig& checkpoint) {
  check_usage(options.preset.empty(), "--preset and --checkpoint both name a model: give one of them");
  ExperimentConfig config = checkpoint;
  apply_overrides(options, config);
  return config;
}

}  // namespace lacuna

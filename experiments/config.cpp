#include "experiments/config.h"

#include <cmath>
#include <sstream>

#include <fmt/format.h>
#include <toml++/toml.h>

#include "core/error.h"
#include "experiments/parse.h"

namespace lacuna {
namespace {

constexpr int64_t kMany = int64_t{1} << 40;

// A field of a configuration is a generic lambda, so that one serves reading and writing:
//   [](auto& c) -> auto& { return c.train.steps; }

std::string number_text(double x) {
  std::string text = fmt::format("{}", x);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}

template <class Field>
ConfigKey integer(std::string name, OnResume on_resume, int64_t min, int64_t max, std::string help, Field field) {
  return {name, std::move(help), on_resume,
          [field](const ExperimentConfig& c) -> ConfigValue { return static_cast<int64_t>(field(c)); },
          [=](ExperimentConfig& c, const ConfigValue& value) {
            const int64_t n = std::get<int64_t>(value);
            check_usage(n >= min && n <= max, name, " must be a whole number from ", min, " to ", max, ", got ", n);
            field(c) = static_cast<std::decay_t<decltype(field(c))>>(n);
          }};
}

template <class Field>
ConfigKey real(std::string name, OnResume on_resume, double min, double max, std::string help, Field field) {
  return {name, std::move(help), on_resume,
          [field](const ExperimentConfig& c) -> ConfigValue { return std::stod(fmt::format("{}", field(c))); },
          [=](ExperimentConfig& c, const ConfigValue& value) {
            const double x = std::get<double>(value);
            check_usage(x >= min && x <= max, name, " must be a number from ", number_text(min), " to ",
                        number_text(max), ", got ", number_text(x));  // NaN fails both comparisons
            field(c) = static_cast<std::decay_t<decltype(field(c))>>(x);
          }};
}

template <class Get, class Set>
ConfigKey text(std::string name, OnResume on_resume, std::string help, Get get, Set set) {
  return {name, std::move(help), on_resume,
          [get](const ExperimentConfig& c) -> ConfigValue { return std::string(get(c)); },
          [name, set](ExperimentConfig& c, const ConfigValue& value) {
            try {
              set(c, std::get<std::string>(value));
            } catch (const Error& error) {
              throw UsageError(concat(name, ": ", error.what()));
            }
          }};
}

// A field of two values, by their words.
template <class Value, class Field>
ConfigKey choice(std::string name, OnResume on_resume, std::string help, std::string first_word,
                 std::string second_word, Value first, Value second, Field field) {
  return text(
      std::move(name), on_resume, concat(help, first_word, " or ", second_word),
      [=](const ExperimentConfig& c) { return field(c) == first ? first_word : second_word; },
      [=](ExperimentConfig& c, const std::string& s) {
        check_usage(s == first_word || s == second_word, "must be ", first_word, " or ", second_word, ", got \"", s,
                    "\"", suggestion(s, {first_word, second_word}));
        field(c) = s == first_word ? first : second;
      });
}

std::vector<ConfigKey> make_keys() {
  const auto refuse = OnResume::refuse, continue_with = OnResume::continue_with, ignore = OnResume::ignore;
  std::vector<ConfigKey> keys;

  keys.push_back(integer(
      "model.n_vocab", refuse, 1, 256, "token values", [](auto& c) -> auto& { return c.model.n_vocab; }));
  keys.push_back(integer(
      "model.n_ctx", refuse, 1, kMany, "positions in a sequence", [](auto& c) -> auto& { return c.model.n_ctx; }));
  keys.push_back(integer(
      "model.d_model", refuse, 1, 1 << 20, "width of the residual stream",
      [](auto& c) -> auto& { return c.model.d_model; }));
  keys.push_back(integer(
      "model.n_layers", refuse, 1, 1 << 15, "residual blocks", [](auto& c) -> auto& { return c.model.n_layers; }));
  keys.push_back(integer(
      "model.n_heads", refuse, 1, 1 << 20, "attention heads", [](auto& c) -> auto& { return c.model.n_heads; }));
  keys.push_back(integer(
      "model.d_qk", refuse, 0, 1 << 20, "width of queries and keys over all heads; 0: d_model",
      [](auto& c) -> auto& { return c.model.d_qk; }));
  keys.push_back(integer(
      "model.d_ff", refuse, 0, 1 << 22, "width of the feed-forward layer; 0: 4 d_model",
      [](auto& c) -> auto& { return c.model.d_ff; }));
  keys.push_back(real(
      "model.dropout", refuse, 0.0, 0.99, "at the end of both residual branches",
      [](auto& c) -> auto& { return c.model.dropout; }));
  keys.push_back({"model.position_extents", "one learned table per coordinate of a position, e.g. [32, 32, 3]", refuse,
                  [](const ExperimentConfig& c) -> ConfigValue { return c.model.position_extents; },
                  [](ExperimentConfig& c, const ConfigValue& value) {
                    const auto& extents = std::get<std::vector<int64_t>>(value);
                    check_usage(!extents.empty() && extents.size() <= 8,
                                "model.position_extents must list 1 to 8 extents, got ", extents.size());
                    for (const int64_t extent : extents)
                      check_usage(extent >= 1 && extent <= kMany,
                                  "model.position_extents must be whole numbers from 1 to ", kMany, ", got ", extent);
                    c.model.position_extents = extents;
                  }});
  keys.push_back(text(
      "model.attention", refuse, "e.g. \"column(stride=96), local(window=96)\"; + merges, | splits heads",
      [](const ExperimentConfig& c) { return to_string(c.model.attention); },
      [](ExperimentConfig& c, const std::string& s) { c.model.attention = parse_attention(s); }));
  keys.push_back(choice(
      "model.init", refuse, "", "released_code", "paper", InitConvention::released_code, InitConvention::paper,
      [](auto& c) -> auto& { return c.model.init; }));
  keys.push_back(choice(
      "model.embedding_init", refuse, "token and position tables: ", "normal", "waves", EmbeddingInit::normal,
      EmbeddingInit::waves, [](auto& c) -> auto& { return c.model.embedding_init; }));
  keys.push_back(real(
      "model.embedding_std", refuse, 0.0, 100.0, "of the initial token vectors; 0: as init says",
      [](auto& c) -> auto& { return c.model.embedding_std; }));
  keys.push_back({"model.recompute", "keep one tensor per block and recompute the block in backward", ignore,
                  [](const ExperimentConfig& c) -> ConfigValue { return c.model.recompute; },
                  [](ExperimentConfig& c, const ConfigValue& value) { c.model.recompute = std::get<bool>(value); }});

  keys.push_back(integer(
      "train.steps", continue_with, 1, kMany, "optimizer steps; the cosine schedule ends here",
      [](auto& c) -> auto& { return c.train.steps; }));
  keys.push_back(integer(
      "train.batch", refuse, 1, 1 << 24, "sequences per optimizer step",
      [](auto& c) -> auto& { return c.train.batch; }));
  keys.push_back(integer(
      "train.micro_batch", refuse, 0, 1 << 24, "sequences per forward and backward pass; 0: the whole batch",
      [](auto& c) -> auto& { return c.train.micro_batch; }));
  keys.push_back(real(
      "train.lr", continue_with, 0.0, 10.0, "highest learning rate", [](auto& c) -> auto& { return c.train.lr; }));
  keys.push_back(integer(
      "train.warmup_steps", continue_with, 0, kMany, "steps of linear warm-up",
      [](auto& c) -> auto& { return c.train.warmup_steps; }));
  keys.push_back(real(
      "train.clip_norm", refuse, 1e-6, 1e6, "highest global norm of the gradient",
      [](auto& c) -> auto& { return c.train.clip_norm; }));
  keys.push_back(real(
      "train.weight_decay", refuse, 0.0, 10.0, "decoupled, on parameters of rank 2",
      [](auto& c) -> auto& { return c.train.weight_decay; }));
  keys.push_back(real(
      "train.beta1", refuse, 0.0, 0.999999, "Adam's decay of the first moment",
      [](auto& c) -> auto& { return c.train.beta1; }));
  keys.push_back(real(
      "train.beta2", refuse, 0.0, 0.999999, "Adam's decay of the second moment",
      [](auto& c) -> auto& { return c.train.beta2; }));
  keys.push_back(real(
      "train.eps", refuse, 1e-16, 1.0, "Adam's epsilon", [](auto& c) -> auto& { return c.train.eps; }));
  keys.push_back(real(
      "train.ema_decay", refuse, 0.0, 0.9999999, "decay of the averaged weights; 0: no average",
      [](auto& c) -> auto& { return c.train.ema_decay; }));
  keys.push_back(integer(
      "train.seed", refuse, 0, INT64_MAX, "of initialization, data order, dropout and sampling",
      [](auto& c) -> auto& { return c.train.seed; }));
  keys.push_back(text(
      "train.dtype", refuse, "of activations: f32, bf16, f16 or f64; parameters are f32 beside bf16 and f16",
      [](const ExperimentConfig& c) { return name_of(c.train.dtype); },
      [](ExperimentConfig& c, const std::string& s) { c.train.dtype = parse_compute_dtype("train.dtype", s); }));
  keys.push_back(integer(
      "train.eval_every", ignore, 1, kMany, "steps between evaluations",
      [](auto& c) -> auto& { return c.train.eval_every; }));
  keys.push_back(integer(
      "train.eval_windows", ignore, 0, kMany, "validation sequences to evaluate; 0: all",
      [](auto& c) -> auto& { return c.train.eval_windows; }));
  keys.push_back(integer(
      "train.test_windows", ignore, 0, kMany, "test sequences to evaluate at the end; 0: all",
      [](auto& c) -> auto& { return c.train.test_windows; }));
  keys.push_back(integer(
      "train.checkpoint_every", ignore, 1, kMany, "steps between checkpoints",
      [](auto& c) -> auto& { return c.train.checkpoint_every; }));
  keys.push_back(integer(
      "train.keep", ignore, 1, 1 << 20, "newest checkpoints to keep, beside the best one",
      [](auto& c) -> auto& { return c.train.keep; }));
  keys.push_back(integer(
      "train.sample_count", ignore, 0, 1 << 12, "sequences to draw at the end",
      [](auto& c) -> auto& { return c.train.sample_count; }));
  keys.push_back(integer(
      "train.sample_length", ignore, 0, kMany, "tokens of each; 0: n_ctx",
      [](auto& c) -> auto& { return c.train.sample_length; }));
  keys.push_back(real(
      "train.temperature", ignore, 0.0, 100.0, "of the samples drawn at the end",
      [](auto& c) -> auto& { return c.train.temperature; }));

  keys.push_back(text(
      "data.path", ignore, "file or folder of the data", [](const ExperimentConfig& c) { return c.data_path; },
      [](ExperimentConfig& c, const std::string& s) { c.data_path = s; }));
  return keys;
}

std::string bare_name(const std::string& key) { return key.substr(key.find('.') + 1); }

const ConfigKey* find_key(const std::string& name, const std::string& origin) {
  std::vector<std::string> names;
  for (const ConfigKey& key : config_keys()) {
    if (key.name == name || bare_name(key.name) == name) return &key;
    names.push_back(key.name);
    if (name.find('.') == std::string::npos) names.push_back(bare_name(key.name));
  }
  throw UsageError(concat(origin, "unknown key ", name, suggestion(name, names)));
}

// Text as the type that `key` has.
ConfigValue value_of_text(const ConfigKey& key, const std::string& text) {
  const ConfigValue like = key.get(ExperimentConfig{});
  if (std::holds_alternative<bool>(like)) return parse_flag(key.name, text);
  if (std::holds_alternative<int64_t>(like)) return parse_integer(key.name, text, INT64_MIN, INT64_MAX);
  if (std::holds_alternative<double>(like)) return parse_real(key.name, text, -HUGE_VAL, HUGE_VAL);
  if (std::holds_alternative<std::string>(like)) return text;
  std::string list = text;
  if (list.size() >= 2 && list.front() == '[' && list.back() == ']') list = list.substr(1, list.size() - 2);
  std::vector<int64_t> values;
  std::istringstream in(list);
  for (std::string item; std::getline(in, item, ',');) {
    const size_t first = item.find_first_not_of(' '), last = item.find_last_not_of(' ');
    item = first == std::string::npos ? "" : item.substr(first, last - first + 1);
    values.push_back(parse_integer(key.name, item, 1, INT64_MAX));
  }
  return values;
}

const char* type_name(const ConfigValue& value) {
  constexpr const char* kNames[] = {"true or false", "a whole number", "a number", "a string",
                                    "a list of whole numbers"};
  return kNames[value.index()];
}

// A TOML value as the type that `key` has.
ConfigValue value_of_toml(const ConfigKey& key, const toml::node& node) {
  const ConfigValue like = key.get(ExperimentConfig{});
  if (std::holds_alternative<bool>(like) && node.is_boolean()) return node.as_boolean()->get();
  if (std::holds_alternative<int64_t>(like) && node.is_integer()) return node.as_integer()->get();
  if (std::holds_alternative<double>(like) && node.is_floating_point()) return node.as_floating_point()->get();
  if (std::holds_alternative<double>(like) && node.is_integer()) return static_cast<double>(node.as_integer()->get());
  if (std::holds_alternative<std::string>(like) && node.is_string()) return node.as_string()->get();
  if (std::holds_alternative<std::vector<int64_t>>(like) && node.is_array()) {
    std::vector<int64_t> values;
    for (const toml::node& item : *node.as_array()) {
      check_usage(item.is_integer(), key.name, " must be ", type_name(like));
      values.push_back(item.as_integer()->get());
    }
    return values;
  }
  throw UsageError(concat(key.name, " must be ", type_name(like)));
}

toml::table parse_toml(const std::string& text, const std::string& origin) {
  try {
    return toml::parse(text);
  } catch (const toml::parse_error& error) {
    throw UsageError(concat(origin, ", line ", error.source().begin.line, ": ", error.description()));
  }
}

std::string line_of(const toml::node& node, const std::string& origin) {
  return concat(origin, ", line ", node.source().begin.line, ": ");
}

}  // namespace

const std::vector<ConfigKey>& config_keys() {
  static const std::vector<ConfigKey> keys = make_keys();
  return keys;
}

void set_from_text(ExperimentConfig& config, const std::string& name, const std::string& text) {
  const ConfigKey* const key = find_key(name, "");
  key->set(config, value_of_text(*key, text));
}

std::string to_toml(const ConfigValue& value) {
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
  if (const auto* n = std::get_if<int64_t>(&value)) return std::to_string(*n);
  if (const auto* x = std::get_if<double>(&value)) return number_text(*x);
  if (const auto* list = std::get_if<std::vector<int64_t>>(&value)) {
    std::string out = "[";
    for (size_t i = 0; i < list->size(); ++i) out += (i ? ", " : "") + std::to_string((*list)[i]);
    return out + "]";
  }
  std::string out = "\"";
  for (const char c : std::get<std::string>(value)) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(static_cast<unsigned char>(c)));
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string to_toml(const ExperimentConfig& config) {
  std::string out = "program = " + to_toml(ConfigValue(config.program)) + "\n";
  out += "preset = " + to_toml(ConfigValue(config.preset)) + "\n";
  std::string section;
  for (const ConfigKey& key : config_keys()) {
    const std::string key_section = key.name.substr(0, key.name.find('.'));
    if (key_section != section) out += "\n[" + key_section + "]\n";
    section = key_section;
    out += bare_name(key.name) + " = " + to_toml(key.get(config)) + "\n";
  }
  return out;
}

std::string preset_of_toml(const std::string& text, const std::string& origin) {
  const toml::table table = parse_toml(text, origin);
  return table["preset"].value_or(std::string());
}

void merge_toml(ExperimentConfig& config, const std::string& text, const std::string& origin) {
  const toml::table table = parse_toml(text, origin);
  for (const auto& [section_key, section] : table) {
    const std::string section_name(section_key.str());
    if (section_name == "program" || section_name == "preset") {
      check_usage(section.is_string(), line_of(section, origin), section_name, " must be a string");
      check_usage(section_name == "preset" || section.as_string()->get() == config.program, line_of(section, origin),
                  "this configuration is of program ", section.as_string()->get(), ", not ", config.program);
      continue;
    }
    check_usage(section_name == "model" || section_name == "train" || section_name == "data", line_of(section, origin),
                "unknown ", section.is_table() ? "section [" : "key ", section_name, section.is_table() ? "]" : "",
                suggestion(section_name, {"model", "train", "data", "program", "preset"}));
    check_usage(section.is_table(), line_of(section, origin), section_name, " must be a section: [", section_name, "]");
    for (const auto& [name, node] : *section.as_table()) {
      const ConfigKey* const key = find_key(concat(section_name, ".", name.str()), line_of(node, origin));
      try {
        key->set(config, value_of_toml(*key, node));
      } catch (const UsageError& error) {
        throw UsageError(concat(line_of(node, origin), error.what()));
      }
    }
  }
}

std::map<std::string, std::string> to_map(const ExperimentConfig& config) {
  std::map<std::string, std::string> values;
  for (const ConfigKey& key : config_keys()) values[key.name] = to_toml(key.get(config));
  return values;
}

void merge_map(ExperimentConfig& config, const std::map<std::string, std::string>& values, const std::string& origin) {
  for (const auto& [name, text] : values) {
    const ConfigKey* const key = find_key(name, origin + ": ");
    const toml::table table = parse_toml("value = " + text, origin);
    key->set(config, value_of_toml(*key, *table.get("value")));
  }
}

void validate(const ExperimentConfig& config) {
  validate(config.model);
  check_usage(config.train.micro_batch <= config.train.batch,
              "train.micro_batch must be at most train.batch = ", config.train.batch, ", got ",
              config.train.micro_batch);
}

}  // namespace lacuna

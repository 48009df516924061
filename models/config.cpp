#include "models/config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string_view>

#include "core/error.h"

namespace lacuna {
namespace {

// Random numbers address a tensor by 16 bits, so a model has at most 2^16 of them: 16 per layer, and 13 others.
constexpr int64_t kMaxLayers = 4095, kMaxPositionTables = 8;
constexpr float kMaxStd = 100.0f;
constexpr int64_t kMaxWidth = int64_t{1} << 20, kMaxContext = int64_t{1} << 31;  // no size overflows 63 bits

void check_range(const char* field, int64_t value, int64_t least, int64_t most) {
  check_usage(value >= least && value <= most, "model config: ", field, " must be in ", least, "..", most, ", got ",
              value);
}

template <class Number>
bool parse_number(std::string_view text, Number& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

std::string join(const std::vector<int64_t>& values) {
  std::string text;
  for (const int64_t value : values) text += concat(text.empty() ? "" : ",", value);
  return text;
}

std::string shortest(float value) {
  char buffer[32];
  return std::string(buffer, std::to_chars(buffer, buffer + sizeof(buffer), value).ptr);
}

/// The entries of a configuration, taken out one by one under their names.
class Entries {
 public:
  explicit Entries(const std::map<std::string, std::string>& strings) : rest_(strings) {}

  bool has(const std::string& name) const { return rest_.contains(name); }

  std::string text(const std::string& name) {
    const auto found = rest_.find(name);
    check_usage(found != rest_.end(), "model config: entry '", name, "' is missing");
    std::string value = found->second;
    rest_.erase(found);
    known_ += concat(known_.empty() ? "" : ", ", name);
    return value;
  }

  int64_t integer(const std::string& name) { return to_integer(name, text(name)); }

  float real(const std::string& name) {
    const std::string value = text(name);
    float number = 0.0f;
    check_usage(parse_number(value, number) && std::isfinite(number), "model config: ", name,
                " must be a number, got '", value, "'");
    return number;
  }

  /// Integers between commas.
  std::vector<int64_t> integers(const std::string& name) {
    const std::string value = text(name);
    std::vector<int64_t> numbers;
    for (size_t begin = 0; begin <= value.size();) {
      const size_t end = std::min(value.find(',', begin), value.size());
      numbers.push_back(to_integer(name, value.substr(begin, end - begin)));
      begin = end + 1;
    }
    return numbers;
  }

  /// Index of the entry's value among two words.
  int choice(const std::string& name, const char* first, const char* second) {
    const std::string value = text(name);
    check_usage(value == first || value == second, "model config: ", name, " must be '", first, "' or '", second,
                "', got '", value, "'");
    return value == first ? 0 : 1;
  }

  void check_empty() const {
    check_usage(rest_.empty(), "model config: unknown entry '", rest_.empty() ? "" : rest_.begin()->first,
                "'; the entries are ", known_);
  }

 private:
  static int64_t to_integer(const std::string& name, const std::string& value) {
    int64_t number = 0;
    check_usage(parse_number(value, number), "model config: ", name, " must be an integer, got '", value, "'");
    return number;
  }

  std::map<std::string, std::string> rest_;
  std::string known_;
};

}  // namespace

void validate(const ModelConfig& config) {
  check_range("n_vocab", config.n_vocab, 1, 256);  // tokens are bytes
  check_range("n_ctx", config.n_ctx, 1, kMaxContext);
  check_range("d_model", config.d_model, 1, kMaxWidth);
  check_range("n_layers", config.n_layers, 1, kMaxLayers);
  check_range("n_heads", config.n_heads, 1, config.d_model);
  check_range("d_qk", config.d_qk, 0, kMaxWidth);
  check_range("d_ff", config.d_ff, 0, kMaxWidth);
  check_usage(config.d_model % config.n_heads == 0,
              "model config: d_model must be a multiple of n_heads = ", config.n_heads, ", got ", config.d_model);
  check_usage(config.qk_width() % config.n_heads == 0,
              "model config: d_qk must be a multiple of n_heads = ", config.n_heads, ", got ", config.qk_width());
  check_usage(config.dropout >= 0.0f && config.dropout < 1.0f, "model config: dropout must be in [0, 1), got ",
              config.dropout);
  check_usage(config.embedding_std >= 0.0f && config.embedding_std <= kMaxStd,
              "model config: embedding_std must be in [0, ", kMaxStd, "], got ", config.embedding_std);

  const std::vector<int64_t>& extents = config.position_extents;
  check_usage(!extents.empty() && extents.size() <= size_t{kMaxPositionTables},
              "model config: position_extents must name 1..", kMaxPositionTables, " tables, got ", extents.size());
  int64_t positions = 1;
  for (const int64_t extent : extents) {
    check_range("each of position_extents", extent, 1, kMaxContext);
    if (positions < kMaxContext) positions *= extent;  // at most 2^62
  }
  check_usage(positions >= config.n_ctx, "model config: position_extents must hold at least n_ctx = ", config.n_ctx,
              " positions, got ", join(extents), ", which hold ", positions);

  check_usage(!config.attention.layers.empty(), "model config: attention must name at least one pattern, got none");
  validate(config.attention, config.n_heads);
}

std::map<std::string, std::string> to_strings(const ModelConfig& config) {
  return {{"n_vocab", std::to_string(config.n_vocab)},
          {"n_ctx", std::to_string(config.n_ctx)},
          {"d_model", std::to_string(config.d_model)},
          {"n_layers", std::to_string(config.n_layers)},
          {"n_heads", std::to_string(config.n_heads)},
          {"d_qk", std::to_string(config.qk_width())},
          {"d_ff", std::to_string(config.ff_width())},
          {"dropout", shortest(config.dropout)},
          {"position_extents", join(config.position_extents)},
          {"attention", to_string(config.attention)},
          {"init", config.init == InitConvention::paper ? "paper" : "released_code"},
          {"embedding_init", config.embedding_init == EmbeddingInit::waves ? "waves" : "normal"},
          {"embedding_std", shortest(config.embedding_std)},
          {"recompute", config.recompute ? "true" : "false"}};
}

ModelConfig model_config_from_strings(const std::map<std::string, std::string>& strings) {
  Entries entries(strings);
  ModelConfig config;
  config.n_vocab = entries.integer("n_vocab");
  config.n_ctx = entries.integer("n_ctx");
  config.d_model = entries.integer("d_model");
  config.n_layers = entries.integer("n_layers");
  config.n_heads = entries.integer("n_heads");
  config.d_qk = entries.integer("d_qk");
  config.d_ff = entries.integer("d_ff");
  config.dropout = entries.real("dropout");
  config.position_extents = entries.integers("position_extents");
  config.attention = parse_attention(entries.text("attention"));
  config.init =
      entries.choice("init", "released_code", "paper") == 0 ? InitConvention::released_code : InitConvention::paper;
  if (entries.has("embedding_init"))
    config.embedding_init =
        entries.choice("embedding_init", "normal", "waves") == 0 ? EmbeddingInit::normal : EmbeddingInit::waves;
  if (entries.has("embedding_std")) config.embedding_std = entries.real("embedding_std");
  config.recompute = entries.choice("recompute", "true", "false") == 0;
  entries.check_empty();
  return config;
}

}  // namespace lacuna

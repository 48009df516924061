#include "ops/sparse_attention/pattern.h"

#include <array>
#include <cctype>
#include <charconv>

#include "core/error.h"
#include "core/text_distance.h"

namespace lacuna {
namespace {

/// How a pattern is written: its name and fields. A field without a default is required.
template <class P>
struct Field {
  std::string_view name;
  int64_t P::*value;
  bool required = true;
};

template <class P>
struct Syntax;

template <>
struct Syntax<Dense> {
  static constexpr std::string_view name = "dense";
  static constexpr std::array<Field<Dense>, 0> fields{};
};

template <>
struct Syntax<Local> {
  static constexpr std::string_view name = "local";
  static constexpr std::array<Field<Local>, 1> fields{{{"window", &Local::window}}};
};

template <>
struct Syntax<Column> {
  static constexpr std::string_view name = "column";
  static constexpr std::array<Field<Column>, 1> fields{{{"stride", &Column::stride}}};
};

template <>
struct Syntax<FixedBlock> {
  static constexpr std::string_view name = "fixed_block";
  static constexpr std::array<Field<FixedBlock>, 1> fields{{{"stride", &FixedBlock::stride}}};
};

template <>
struct Syntax<FixedSummary> {
  static constexpr std::string_view name = "fixed_summary";
  static constexpr std::array<Field<FixedSummary>, 3> fields{
      {{"stride", &FixedSummary::stride}, {"c", &FixedSummary::c}, {"sub_blocks", &FixedSummary::sub_blocks, false}}};
};

constexpr int64_t kLargestField = int64_t{1} << 40;  // no position or offset in elements overflows 63 bits

/// Throws UsageError unless every field of `p` obeys its rule.
template <class P>
void check_fields(const P& p) {
  for (const Field<P>& field : Syntax<P>::fields) {
    check_usage(p.*field.value >= 1, Syntax<P>::name, ": ", field.name, " must be at least 1, got ", p.*field.value);
    check_usage(p.*field.value <= kLargestField, Syntax<P>::name, ": ", field.name, " must be at most ", kLargestField,
                ", got ", p.*field.value);
  }
  if constexpr (std::is_same_v<P, FixedSummary>)
    check_usage(p.c <= p.stride / p.sub_blocks, "fixed_summary: c * sub_blocks must be at most stride, got ", p.c,
                " * ", p.sub_blocks, " > ", p.stride);
}

/// Reads the grammar of parse_attention from left to right.
class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  AttentionPattern attention() {
    AttentionPattern result;
    do result.layers.push_back(layer());
    while (accept(','));
    skip_space();
    check_usage(at_ == text_.size(), "attention: expected ',', '|', '+' or the end, got ", here());
    return result;
  }

 private:
  LayerPattern layer() {
    LayerPattern result;
    do {
      PatternUnion& merged = result.heads.emplace_back();
      do merged.push_back(pattern());
      while (accept('+'));
    } while (accept('|'));
    return result;
  }

  Pattern pattern() {
    const std::string_view name = word("a pattern");
    Pattern result;
    if (!parse_if<Dense>(name, result) && !parse_if<Local>(name, result) && !parse_if<Column>(name, result) &&
        !parse_if<FixedBlock>(name, result) && !parse_if<FixedSummary>(name, result))
      throw UsageError(concat("attention: no pattern is called '", name, "'",
                              suggestion(name, {Syntax<Dense>::name, Syntax<Local>::name, Syntax<Column>::name,
                                                Syntax<FixedBlock>::name, Syntax<FixedSummary>::name})));
    return result;
  }

  template <class P>
  bool parse_if(std::string_view name, Pattern& result) {
    if (name != Syntax<P>::name) return false;
    P p;
    std::array<bool, Syntax<P>::fields.size()> given{};
    if (accept('(') && !accept(')')) {
      do {
        const std::string_view key = word("a field");
        const size_t f = field_index<P>(key);
        check_usage(!given[f], name, ": ", key, " is given twice");
        check_usage(accept('='), name, ": expected '=' after ", key, ", got ", here());
        p.*Syntax<P>::fields[f].value = integer(name, key);
        given[f] = true;
      } while (accept(','));
      check_usage(accept(')'), name, ": expected ',' or ')', got ", here());
    }
    for (size_t f = 0; f < given.size(); ++f)
      check_usage(given[f] || !Syntax<P>::fields[f].required, name, ": ", Syntax<P>::fields[f].name,
                  " is missing, as in ", name, "(", Syntax<P>::fields[f].name, "=128)");
    check_fields(p);
    result = p;
    return true;
  }

  template <class P>
  static size_t field_index(std::string_view key) {
    std::vector<std::string_view> names;
    for (const Field<P>& field : Syntax<P>::fields) {
      if (field.name == key) return names.size();
      names.push_back(field.name);
    }
    throw UsageError(concat(Syntax<P>::name, ": no field is called '", key, "'", suggestion(key, names)));
  }

  void skip_space() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
  }

  bool accept(char c) {
    skip_space();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  /// What comes next, for messages.
  std::string here() const {
    const size_t next = std::min(text_.find_first_not_of(" \t\n", at_), text_.size());
    return next == text_.size() ? "the end" : concat("'", text_.substr(next, 12), "'");
  }

  std::string_view word(std::string_view expected) {
    skip_space();
    const size_t begin = at_;
    while (at_ < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[at_])) || text_[at_] == '_')) ++at_;
    check_usage(at_ > begin, "attention: expected ", expected, ", got ", here());
    return text_.substr(begin, at_ - begin);
  }

  int64_t integer(std::string_view pattern, std::string_view field) {
    skip_space();
    int64_t value = 0;
    const char* const begin = text_.data() + at_;
    const auto [end, error] = std::from_chars(begin, text_.data() + text_.size(), value);
    check_usage(error == std::errc(), pattern, ": ", field, " must be a whole number, got ", here());
    at_ += static_cast<size_t>(end - begin);
    return value;
  }

  std::string_view text_;
  size_t at_ = 0;
};

template <class P>
std::string write(const P& p) {
  std::string fields;
  for (const Field<P>& field : Syntax<P>::fields)
    if (field.required || p.*field.value != P().*field.value)
      fields += concat(fields.empty() ? "" : ", ", field.name, "=", p.*field.value);
  return concat(Syntax<P>::name, fields.empty() ? "" : "(", fields, fields.empty() ? "" : ")");
}

/// The written items with `separator` between them.
template <class Items, class Write>
std::string join(const Items& items, std::string_view separator, const Write& write_item) {
  std::string text;
  for (const auto& item : items) {
    if (!text.empty()) text += separator;
    text += write_item(item);
  }
  return text;
}

void check_heads(const LayerPattern& layer, int64_t n_heads) {
  const auto splits = static_cast<int64_t>(layer.heads.size());
  check_usage(splits > 0, "attention: a layer needs at least one pattern, got none");
  check_usage(n_heads % splits == 0, "attention: n_heads must be a multiple of the ", splits,
              " patterns that '|' splits the heads over, got ", n_heads);
  for (const PatternUnion& patterns : layer.heads) {
    check_usage(!patterns.empty(), "attention: a head needs at least one pattern, got none");
    for (const Pattern& pattern : patterns) {
      std::visit([](const auto& p) { check_fields(p); }, pattern);
      if (const auto* summary = std::get_if<FixedSummary>(&pattern))
        check_usage(n_heads % summary->sub_blocks == 0, "fixed_summary: n_heads must be a multiple of sub_blocks, got ",
                    n_heads, " heads and sub_blocks ", summary->sub_blocks);
    }
  }
}

}  // namespace

PatternUnion LayerPattern::for_head(int64_t h) const {
  PatternUnion patterns = heads[static_cast<size_t>(h) % heads.size()];
  for (Pattern& pattern : patterns)
    if (auto* summary = std::get_if<FixedSummary>(&pattern)) summary->sub_block = h % summary->sub_blocks;
  return patterns;
}

bool attends(const PatternUnion& patterns, int64_t i, int64_t j) {
  for (const Pattern& pattern : patterns)
    if (std::visit([=](const auto& p) { return p(i, j); }, pattern)) return true;
  return false;
}

AttentionPattern parse_attention(std::string_view text) { return Parser(text).attention(); }

std::string to_string(const AttentionPattern& attention) {
  return join(attention.layers, ", ", [](const LayerPattern& layer) {
    return join(layer.heads, " | ", [](const PatternUnion& patterns) {
      return join(patterns, " + ",
                  [](const Pattern& pattern) { return std::visit([](const auto& p) { return write(p); }, pattern); });
    });
  });
}

void validate(const AttentionPattern& attention, int64_t n_heads) {
  check_usage(n_heads >= 1, "attention: n_heads must be at least 1, got ", n_heads);
  check_usage(!attention.layers.empty(), "attention: needs at least one layer's pattern, got none");
  for (const LayerPattern& layer : attention.layers) check_heads(layer, n_heads);
}

}  // namespace lacuna

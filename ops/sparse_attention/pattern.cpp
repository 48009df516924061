#include "ops/sparse_attention/pattern.h"

#include <algorithm>
#include <cctype>
#include <charconv>

#include "core/error.h"
#include "core/text_distance.h"

namespace lacuna {
namespace {

std::vector<PatternKind>& kinds() {
  static std::vector<PatternKind> kinds{kind_of<Dense>(),  kind_of<Local>(),      kind_of<Dilated>(),
                                        kind_of<Column>(), kind_of<FixedBlock>(), kind_of<FixedSummary>(),
                                        kind_of<Global>(), kind_of<LongNet>()};
  return kinds;
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
    std::vector<std::string_view> names;
    for (const PatternKind& kind : kinds()) {
      if (kind.name == name) return pattern_of(kind);
      names.push_back(kind.name);
    }
    std::string meant = suggestion(name, names);
    if (meant.empty())
      for (const std::string_view known : names) meant += concat(meant.empty() ? "; there are " : ", ", known);
    throw UsageError(concat("attention: no pattern is called '", name, "'", meant));
  }

  Pattern pattern_of(const PatternKind& kind) {
    std::vector<std::vector<int64_t>> values(kind.fields.size());
    if (accept('(') && !accept(')')) {
      do {
        const std::string_view key = word("a field");
        const size_t f = field_index(kind, key);
        check_usage(values[f].empty(), kind.name, ": ", key, " is given twice");
        check_usage(accept('='), kind.name, ": expected '=' after ", key, ", got ", here());
        do values[f].push_back(integer(kind.name, key));
        while (kind.fields[f].is_list && accept(':'));
      } while (accept(','));
      check_usage(accept(')'), kind.name, ": expected ',' or ')', got ", here());
    }
    for (size_t f = 0; f < values.size(); ++f) {
      const PatternKind::FieldSyntax& field = kind.fields[f];
      check_usage(!values[f].empty() || !field.required, kind.name, ": ", field.name, " is missing, as in ", kind.name,
                  "(", field.name, "=", field.is_list ? "16:128)" : "128)");
    }
    return kind.make(values);
  }

  static size_t field_index(const PatternKind& kind, std::string_view key) {
    std::vector<std::string_view> names;
    for (const PatternKind::FieldSyntax& field : kind.fields) {
      if (field.name == key) return names.size();
      names.push_back(field.name);
    }
    throw UsageError(concat(kind.name, ": no field is called '", key, "'", suggestion(key, names)));
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
    for (const Pattern& pattern : patterns) pattern.check_heads(n_heads);
  }
}

}  // namespace

const std::vector<PatternKind>& pattern_kinds() { return kinds(); }

void register_pattern_kind(PatternKind kind) {
  for (const PatternKind& known : kinds())
    check(known.name != kind.name, "register_pattern: a pattern called '", kind.name, "' is known already");
  kinds().push_back(std::move(kind));
}

PatternUnion LayerPattern::for_head(int64_t h) const {
  PatternUnion patterns = heads[static_cast<size_t>(h) % heads.size()];
  for (Pattern& pattern : patterns) pattern = pattern.for_head(h);
  return patterns;
}

bool attends(const PatternUnion& patterns, int64_t i, int64_t j) { return multiplicity(patterns, i, j) > 0; }

int64_t multiplicity(const PatternUnion& patterns, int64_t i, int64_t j) {
  int64_t ordinary = 0;
  for (const Pattern& pattern : patterns) {
    const int64_t count = pattern.multiplicity(i, j);
    if (count > 0 && pattern.counts_keys()) return count;
    ordinary = std::max(ordinary, count);
  }
  return ordinary;
}

AttentionPattern parse_attention(std::string_view text) { return Parser(text).attention(); }

std::string to_string(const AttentionPattern& attention) {
  return join(attention.layers, ", ", [](const LayerPattern& layer) {
    return join(layer.heads, " | ", [](const PatternUnion& patterns) {
      return join(patterns, " + ", [](const Pattern& pattern) { return pattern.text(); });
    });
  });
}

void validate(const AttentionPattern& attention, int64_t n_heads) {
  check_usage(n_heads >= 1, "attention: n_heads must be at least 1, got ", n_heads);
  check_usage(!attention.layers.empty(), "attention: needs at least one layer's pattern, got none");
  for (const LayerPattern& layer : attention.layers) check_heads(layer, n_heads);
}

}  // namespace lacuna

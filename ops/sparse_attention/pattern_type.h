#pragma once
// What a pattern is, and how a type becomes one. docs/patterns.md shows how to add a pattern.

#include <concepts>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "ops/sparse_attention/view.h"

namespace lacuna {

/// A field of a pattern of type P, as configurations write it: a positive number, or a list of them (16:64:256).
template <class P>
struct Field {
  Field(std::string_view name, int64_t P::*number, bool required = true)
      : name(name),
        required(required),
        is_list(false),
        get([number](const P& p) { return std::vector<int64_t>{p.*number}; }),
        set([number](P& p, const std::vector<int64_t>& values) { p.*number = values.at(0); }) {}
  Field(std::string_view name, std::vector<int64_t> P::*list, bool required = true)
      : name(name),
        required(required),
        is_list(true),
        get([list](const P& p) { return p.*list; }),
        set([list](P& p, const std::vector<int64_t>& values) { p.*list = values; }) {}

  std::string_view name;
  bool required, is_list;
  std::function<std::vector<int64_t>(const P&)> get;
  std::function<void(P&, const std::vector<int64_t>&)> set;
};

/// A type that says everything about a pattern in one place:
///
///   static constexpr std::string_view name;        as parse_attention reads it
///   static std::vector<Field<P>> fields();
///   bool operator()(int64_t i, int64_t j) const;   whether query i attends to key j; implies 0 <= j <= i
///   std::vector<View> views() const;               the same pairs as bands: what kernels compute
///   operator==
///
/// and, where it needs them,
///
///   void check() const;                            throws UsageError when fields do not fit together
///   void check_heads(int64_t n_heads) const;       likewise for the number of heads
///   P for_head(int64_t h) const;                   the pattern of head h, when heads differ
///   int64_t multiplicity(int64_t i, int64_t j) const;
///
/// With `multiplicity` a key counts in the softmax as often as it says (0 where the predicate is false), and the views
/// give each pair that often.
template <class P>
concept PatternType = requires(const P& p, int64_t i) {
  { P::name } -> std::convertible_to<std::string_view>;
  { P::fields() } -> std::same_as<std::vector<Field<P>>>;
  { p(i, i) } -> std::same_as<bool>;
  { p.views() } -> std::same_as<std::vector<View>>;
};

/// Largest value of a field: no position or offset in elements overflows 63 bits.
inline constexpr int64_t kLargestField = int64_t{1} << 40;

/// Throws UsageError unless every field of `p` is in 1..kLargestField and the fields fit together.
template <PatternType P>
void check_fields(const P& p) {
  for (const Field<P>& field : P::fields()) {
    check_usage(!field.get(p).empty(), P::name, ": ", field.name, " must have at least one number, got none");
    for (const int64_t value : field.get(p)) {
      check_usage(value >= 1, P::name, ": ", field.name, " must be at least 1, got ", value);
      check_usage(value <= kLargestField, P::name, ": ", field.name, " must be at most ", kLargestField, ", got ",
                  value);
    }
  }
  if constexpr (requires { p.check(); }) p.check();
}

/// Any pattern, as a value.
class Pattern {
 public:
  /// Throws UsageError as check_fields does.
  template <PatternType P>
  Pattern(const P& p) : self_(std::make_shared<Holder<P>>(p)) {
    check_fields(p);
  }

  /// How often key j counts for query i: 0 or 1, more for patterns with multiplicities.
  int64_t multiplicity(int64_t i, int64_t j) const { return self_->multiplicity(i, j); }
  bool operator()(int64_t i, int64_t j) const { return multiplicity(i, j) > 0; }

  /// multiplicity(i, j) for each j in [begin, end).
  void multiplicities(int64_t i, int64_t begin, int64_t end, int64_t* counts) const {
    self_->multiplicities(i, begin, end, counts);
  }

  std::vector<View> views() const { return self_->views(); }

  /// Whether the pattern has multiplicities of its own.
  bool counts_keys() const { return self_->counts_keys(); }

  Pattern for_head(int64_t h) const { return self_->for_head(h); }

  /// Throws UsageError when the pattern cannot be split over n_heads.
  void check_heads(int64_t n_heads) const { self_->check_heads(n_heads); }

  /// The pattern as parse_attention reads it.
  std::string text() const { return self_->text(); }

  /// The pattern as a P, or null when it is another one.
  template <PatternType P>
  const P* get_if() const {
    const auto* holder = dynamic_cast<const Holder<P>*>(self_.get());
    return holder ? &holder->value : nullptr;
  }

  friend bool operator==(const Pattern& a, const Pattern& b) { return a.self_->equals(b); }

 private:
  struct Interface {
    virtual ~Interface() = default;
    virtual int64_t multiplicity(int64_t i, int64_t j) const = 0;
    virtual void multiplicities(int64_t i, int64_t begin, int64_t end, int64_t* counts) const = 0;
    virtual std::vector<View> views() const = 0;
    virtual bool counts_keys() const = 0;
    virtual Pattern for_head(int64_t h) const = 0;
    virtual void check_heads(int64_t n_heads) const = 0;
    virtual std::string text() const = 0;
    virtual bool equals(const Pattern& other) const = 0;
  };

  template <class P>
  struct Holder final : Interface {
    explicit Holder(const P& p) : value(p) {}

    static constexpr bool kCountsKeys = requires(const P& p, int64_t i) { p.multiplicity(i, i); };

    int64_t multiplicity(int64_t i, int64_t j) const override {
      if constexpr (kCountsKeys)
        return value.multiplicity(i, j);
      else
        return value(i, j);
    }
    void multiplicities(int64_t i, int64_t begin, int64_t end, int64_t* counts) const override {
      for (int64_t j = begin; j < end; ++j) counts[j - begin] = Holder::multiplicity(i, j);
    }
    std::vector<View> views() const override { return value.views(); }
    bool counts_keys() const override { return kCountsKeys; }
    Pattern for_head(int64_t h) const override {
      if constexpr (requires { value.for_head(h); })
        return value.for_head(h);
      else
        return value;
    }
    void check_heads([[maybe_unused]] int64_t n_heads) const override {
      if constexpr (requires { value.check_heads(n_heads); }) value.check_heads(n_heads);
    }
    std::string text() const override {
      std::string fields;
      for (const Field<P>& field : P::fields()) {
        if (!field.required && field.get(value) == field.get(P())) continue;
        fields += concat(fields.empty() ? "" : ", ", field.name, "=");
        const char* separator = "";
        for (const int64_t number : field.get(value)) {
          fields += concat(separator, number);
          separator = ":";
        }
      }
      return fields.empty() ? std::string(P::name) : concat(P::name, "(", fields, ")");
    }
    bool equals(const Pattern& other) const override {
      const P* const p = other.get_if<P>();
      return p && *p == value;
    }

    P value;
  };

  std::shared_ptr<const Interface> self_;
};

/// A kind of pattern, for reading configurations.
struct PatternKind {
  struct FieldSyntax {
    std::string_view name;
    bool required, is_list;
  };

  std::string_view name;
  std::vector<FieldSyntax> fields;
  Pattern (*make)(const std::vector<std::vector<int64_t>>& values);  // of each field; none: its default
};

/// All kinds that parse_attention knows: the built-in ones and those registered since.
const std::vector<PatternKind>& pattern_kinds();

/// Throws Error when the name is taken. Not to be called while another thread reads a configuration.
void register_pattern_kind(PatternKind kind);

template <PatternType P>
PatternKind kind_of() {
  PatternKind kind{P::name, {}, [](const std::vector<std::vector<int64_t>>& values) -> Pattern {
                     P p;
                     const std::vector<Field<P>> fields = P::fields();
                     for (size_t f = 0; f < fields.size(); ++f)
                       if (!values[f].empty()) fields[f].set(p, values[f]);
                     return p;
                   }};
  for (const Field<P>& field : P::fields()) kind.fields.push_back({field.name, field.required, field.is_list});
  return kind;
}

/// Makes parse_attention, and with it every program and configuration, know the pattern P.
template <PatternType P>
void register_pattern() {
  register_pattern_kind(kind_of<P>());
}

}  // namespace lacuna

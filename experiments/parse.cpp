#include "experiments/parse.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "core/error.h"
#include "core/text_distance.h"

namespace lacuna {
namespace {

template <class T>
T parse_number(std::string_view what, std::string_view text, T min, T max, std::string_view kind) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc{} && end == text.data() + text.size();
  const bool any = min <= std::numeric_limits<T>::lowest() && max >= std::numeric_limits<T>::max();
  check_usage(whole && value >= min && value <= max, what, " must be ", kind,
              any ? "" : fmt::format(" from {} to {}", min, max), ", got \"", text, "\"");
  return value;
}

}  // namespace

int64_t parse_integer(std::string_view what, std::string_view text, int64_t min, int64_t max) {
  return parse_number<int64_t>(what, text, min, max, "a whole number");
}

double parse_real(std::string_view what, std::string_view text, double min, double max) {
  return parse_number<double>(what, text, min, max, "a number");
}

bool parse_flag(std::string_view what, std::string_view text) {
  check_usage(text == "true" || text == "false", what, " must be true or false, got \"", text, "\"");
  return text == "true";
}

DType parse_compute_dtype(std::string_view what, std::string_view text) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16})
    if (name_of(dtype) == text) return dtype;
  throw UsageError(concat(what, " must be f32, f64, bf16 or f16, got '", text, "'"));
}

int64_t parse_bytes(std::string_view what, std::string_view text) {
  std::string_view digits = text;
  int shift = 0;
  if (!digits.empty()) {
    const size_t suffix = std::string_view("KMGT").find(digits.back());
    if (suffix != std::string_view::npos) {
      shift = 10 * static_cast<int>(suffix + 1);
      digits.remove_suffix(1);
    }
  }
  int64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  check_usage(
      error == std::errc{} && end == digits.data() + digits.size() && value >= 1 && value <= (INT64_MAX >> shift), what,
      " must be a number of bytes such as 16G or 500M, got \"", text, "\"");
  return value << shift;
}

std::string suggestion(std::string_view name, const std::vector<std::string>& candidates) {
  const std::string* best = nullptr;
  size_t best_distance = std::max<size_t>(2, name.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(name, candidate);
    if (distance < best_distance) {
      best = &candidate;
      best_distance = distance;
    }
  }
  return best ? concat(" (did you mean ", *best, "?)") : "";
}

std::string format_bytes(int64_t bytes) {
  constexpr std::array<const char*, 5> kUnits{"bytes", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  auto value = static_cast<double>(bytes);
  while (value >= 1024.0 && unit + 1 < kUnits.size()) {
    value /= 1024.0;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} bytes", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string format_count(int64_t count) {
  std::string text = std::to_string(count);
  const size_t first = count < 0 ? 1 : 0;
  for (size_t i = text.size(); i > first + 3; i -= 3) text.insert(i - 3, 1, ',');
  return text;
}

std::string format_seconds(double seconds) {
  const auto s = static_cast<int64_t>(std::lround(std::clamp(seconds, 0.0, 1e12)));
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{} min {:02} s", s / 60, s % 60);
  return fmt::format("{} h {:02} min", s / 3600, s / 60 % 60);
}

}  // namespace lacuna

#pragma once
// Numbers and names as a person types them.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.h"

namespace lacuna {

/// A whole number in [min, max]. Throws UsageError that names `what`, the allowed range and what it got.
int64_t parse_integer(std::string_view what, std::string_view text, int64_t min, int64_t max);

/// A finite number in [min, max]. Errors as parse_integer.
double parse_real(std::string_view what, std::string_view text, double min, double max);

/// "true" or "false". Errors as parse_integer.
bool parse_flag(std::string_view what, std::string_view text);

/// f32, f64, bf16 or f16. Errors as parse_integer.
DType parse_compute_dtype(std::string_view what, std::string_view text);

/// A number of bytes with an optional suffix K, M, G or T (powers of 1024). Errors as parse_integer.
int64_t parse_bytes(std::string_view what, std::string_view text);

/// " (did you mean --steps?)" with the candidate nearest to `name`, or nothing when none is near.
std::string suggestion(std::string_view name, const std::vector<std::string>& candidates);

/// Bytes for people: 1.5 GiB.
std::string format_bytes(int64_t bytes);

/// 1234567 as 1,234,567.
std::string format_count(int64_t count);

/// Seconds for people: 45 s, 3 min 20 s, 2 h 05 min.
std::string format_seconds(double seconds);

}  // namespace lacuna

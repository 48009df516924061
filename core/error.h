#pragma once
// Errors: one exception type, and the check that throws it.

#include <sstream>
#include <stdexcept>
#include <string>

namespace lacuna {

/// A failure that a caller can act on. The message names the operation, what it needed and what it got:
/// `gelu: x must be f32 or f64, got i32`. Programs print it and exit with code 1.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// CUDA refuses a call, or reports what went wrong before it.
class GpuError : public Error {
 public:
  using Error::Error;
};

/// The command line or the configuration is wrong. Programs print it and exit with code 2.
class UsageError : public Error {
 public:
  using Error::Error;
};

/// Streams `parts` one after the other into a string.
template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

/// Throws Error with the concatenated `parts`.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Error(concat(parts...));
}

/// Throws Error with the concatenated `parts` unless `condition` holds; formats nothing when it does.
template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]]
    fail(parts...);
}

/// As `check`, for mistakes in a command line or configuration: throws UsageError.
template <class... Parts>
void check_usage(bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]]
    throw UsageError(concat(parts...));
}

}  // namespace lacuna

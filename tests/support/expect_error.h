#pragma once
// Checks of error messages.

#include <doctest/doctest.h>

#include <string>
#include <string_view>

#include "core/error.h"

namespace lacuna {

inline bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

/// The message of the exception of type E that `call` throws, or that it threw none.
template <class E = Error, class Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const E& error) {
    return error.what();
  }
  return "(nothing was thrown)";
}

/// Checks that `call` throws an E whose message contains `part`.
template <class E = Error, class Call>
void expect_error(std::string_view part, const Call& call) {
  const std::string message = message_of<E>(call);
  CHECK_MESSAGE(contains(message, part), "expected an error with '" << std::string(part) << "', got: " << message);
}

}  // namespace lacuna

#pragma once
// What the tests of data share.

#include <filesystem>
#include <string>
#include <string_view>

#include "core/error.h"
#include "tests/support/temporary_folder.h"

namespace lacuna {

/// The message of the exception of type E that `call` throws, or that it threw none.
template <class E, class Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const E& error) {
    return error.what();
  }
  return "(nothing was thrown)";
}

/// A path as messages show it.
inline std::string quoted(const std::filesystem::path& path) { return concat("'", path.string(), "'"); }

inline bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

}  // namespace lacuna

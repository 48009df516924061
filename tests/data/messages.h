#pragma once
// What the tests of data share.

#include <filesystem>
#include <string>

#include "tests/support/expect_error.h"
#include "tests/support/temporary_folder.h"

namespace lacuna {

/// A path as messages show it.
inline std::string quoted(const std::filesystem::path& path) { return concat("'", path.string(), "'"); }

}  // namespace lacuna

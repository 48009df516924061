#pragma once
// Errors of CLI11 in plain words.

#include <string>

#include <CLI/CLI.hpp>

#include "core/error.h"

namespace lacuna {

/// What is wrong with the flags that `app` could not parse. CLI11 says "--steps: 1 required TEXT missing".
inline std::string explain(const CLI::ParseError& error, const CLI::App& app) {
  const std::string message = error.what(), flag = message.substr(0, message.find(':'));
  const CLI::Option* const option = app.get_option_no_throw(flag);
  if (!option || error.get_exit_code() != static_cast<int>(CLI::ExitCodes::ArgumentMismatch)) return message;
  return option->results().size() > 1 ? concat(flag, " is given ", option->results().size(), " times, must be once")
                                      : concat(flag, " needs a value");
}

}  // namespace lacuna

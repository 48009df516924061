// Which positions attend to which, Sec. 4: proved, counted and drawn.
//
//   patterns check "local(window=128), column(stride=128)" --n 12288
//   patterns cost --preset enwik8-95m-fixed
//   patterns draw --out figure3.svg

#include <iostream>
#include <new>

#include "core/error.h"
#include "experiments/pattern_options.h"

int main(int argc, char** argv) {
  const auto fail_with = [](const char* message, int code) {
    std::cerr << "patterns: " << message << std::endl;
    return code;
  };
  try {
    const lacuna::PatternOptions options = lacuna::parse_pattern_options({argv, argv + argc});
    int64_t violations = 0;
    switch (options.command) {
      case lacuna::PatternCommand::help: std::cout << options.help; break;
      case lacuna::PatternCommand::check: std::cout << lacuna::check_report(options, violations); break;
      case lacuna::PatternCommand::draw: std::cout << lacuna::draw_patterns(options, lacuna::standard_output()); break;
      case lacuna::PatternCommand::cost: std::cout << lacuna::cost_report(options); break;
    }
    std::cout.flush();
    return violations == 0 ? 0 : 1;
  } catch (const lacuna::UsageError& error) {
    return fail_with(error.what(), 2);
  } catch (const std::bad_alloc&) {
    return fail_with("out of memory", 1);
  } catch (const std::exception& error) {
    return fail_with(error.what(), 1);
  }
}

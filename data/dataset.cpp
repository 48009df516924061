#include "data/dataset.h"

namespace lacuna {

std::string_view name_of(Split split) {
  switch (split) {
    case Split::train: return "train";
    case Split::valid: return "valid";
    case Split::test: return "test";
  }
  fail("Split: no such value: ", static_cast<int>(split));
}

Split parse_split(std::string_view name) {
  for (const Split split : {Split::train, Split::valid, Split::test})
    if (name == name_of(split)) return split;
  throw UsageError(concat("split must be train, valid or test, got '", name, "'"));
}

}  // namespace lacuna

#include "data/dataset.h"

#include <doctest/doctest.h>

#include "tests/data/messages.h"

namespace lacuna {

TEST_CASE("Split: names and their inverse") {
  CHECK(name_of(Split::train) == "train");
  CHECK(name_of(Split::valid) == "valid");
  CHECK(name_of(Split::test) == "test");
  for (const Split split : {Split::train, Split::valid, Split::test}) CHECK(parse_split(name_of(split)) == split);
}

TEST_CASE("Split: another name is a usage error") {
  for (const char* name : {"", "Train", "validation", "tes"})
    CHECK(message_of<UsageError>([&] { parse_split(name); }) ==
          concat("split must be train, valid or test, got '", name, "'"));
}

}  // namespace lacuna

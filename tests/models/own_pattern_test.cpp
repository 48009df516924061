// The example of docs/patterns.md, used as its reader would.

#include <doctest/doctest.h>
#include <rapidcheck.h>

#include "docs/examples/block_diagonal_global.h"
#include "ops/sparse_attention/parts.h"
#include "optim/adam.h"
#include "tests/models/tiny_models.h"
#include "tests/support/expect_error.h"

namespace lacuna {
namespace {

void know_pattern() {
  static const bool registered = (register_pattern<BlockDiagonalGlobal>(), true);
  static_cast<void>(registered);
}

TEST_CASE("own pattern: its views are its predicate") {
  CHECK(rc::check([] {
    BlockDiagonalGlobal pattern;
    pattern.block = *rc::gen::inRange<int64_t>(1, 20);
    pattern.n_global = *rc::gen::inRange<int64_t>(1, pattern.block + 1);
    const std::vector<Part> parts = parts_of({pattern});
    for (int64_t i = 0; i < 60; ++i) {
      std::vector<int> visits(60, 0);
      for_each_key(parts, i, [&](int64_t j) { ++visits.at(static_cast<size_t>(j)); });
      for (int64_t j = 0; j < 60; ++j) RC_ASSERT(visits[static_cast<size_t>(j)] == pattern(i, j));
    }
  }));
}

TEST_CASE("own pattern: configurations read it and check it") {
  know_pattern();
  const std::string text = "block_diagonal_global(block=8, n_global=2) | local(window=4)";
  CHECK(to_string(parse_attention(text)) == text);
  CHECK(message_of<UsageError>([] { parse_attention("block_diagonal_global(block=2, n_global=3)"); }) ==
        "block_diagonal_global: n_global must be at most block, got 3 > 2");
}

TEST_CASE("own pattern: a model trains with it") {
  know_pattern();
  const SparseTransformer model(tiny_config("block_diagonal_global(block=6, n_global=2), local(window=3)"), /*seed=*/1);
  Adam adam(model.parameters(), {});
  const Tensor tokens = random_tokens(2, 23, 11);
  const auto step = [&] {
    model.parameters().clear_gradients();
    const Variable loss = model.loss(tokens, {.training = true});
    backward(loss);
    adam.step(/*lr=*/1e-2);
    return elements(loss.value())[0];
  };
  const double first = step();
  double last = first;
  for (int s = 0; s < 40; ++s) last = step();
  CHECK(last < 0.5 * first);  // it learns these tokens by heart
}

}  // namespace
}  // namespace lacuna

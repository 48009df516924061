#include "autograd/parameters.h"

#include <doctest/doctest.h>

using namespace lacuna;

namespace {
const std::vector<ParameterSpec> kSpecs{{"a", Shape{3, 5}, 0.5}, {"b", Shape{7}, 0.0, 1.0}, {"c", Shape{40}, 0.5}};
}

TEST_CASE("Parameters: pieces of one buffer, aligned, padding zero and not counted") {
  const Parameters p(kSpecs, /*seed=*/1, DType::f64);
  CHECK(p.count() == 62);
  CHECK(count_parameters(kSpecs) == 62);
  CHECK(p.values().numel() == 32 + 32 + 64);
  CHECK(p.entries()[1].offset == 32);
  CHECK(p["b"].value().data<double>() == p.values().data<double>() + 32);
  CHECK(p["b"].grad().data<double>() == p.gradients().data<double>() + 32);
  CHECK(to_vector<double>(p["b"].value()) == std::vector<double>(7, 1.0));
  for (int64_t i = 15; i < 32; ++i) CHECK(p.values().data<double>()[i] == 0.0);
  CHECK_THROWS_WITH_AS(p["d"], "Parameters: there is no parameter d", Error);
  CHECK_THROWS_WITH_AS(Parameters({kSpecs[0], kSpecs[0]}, 1), "Parameters: name a occurs twice", Error);
}

TEST_CASE("Parameters: parts of a leaf lie together, whatever is specified between them") {
  const std::vector<ParameterSpec> specs{{.name = "q.weight", .shape = {3, 5}, .init_std = 0.5, .part_of = "qk.weight"},
                                         {.name = "q.bias", .shape = {3}, .init_value = 2.0, .part_of = "qk.bias"},
                                         {.name = "k.weight", .shape = {2, 5}, .init_std = 0.5, .part_of = "qk.weight"},
                                         {.name = "k.bias", .shape = {2}, .init_value = 3.0, .part_of = "qk.bias"},
                                         {.name = "gain", .shape = {4}, .init_value = 1.0}};
  const Parameters p(specs, /*seed=*/1, DType::f64);
  std::vector<std::string> leaves;
  for (const Parameters::Entry& leaf : p.leaves()) leaves.push_back(leaf.name);
  CHECK(leaves == std::vector<std::string>{"qk.weight", "qk.bias", "gain"});
  CHECK(p.count() == 34);
  CHECK(p.values().numel() == 3 * 32);
  CHECK(flat_size(specs) == 3 * 32);
  CHECK(p["qk.weight"].shape() == Shape{5, 5});
  CHECK(p["k.weight"].value().data<double>() == p["qk.weight"].value().data<double>() + 15);
  CHECK(to_vector<double>(p["qk.bias"].value()) == std::vector<double>{2.0, 2.0, 2.0, 3.0, 3.0});
  CHECK(p["k.bias"].grad().data<double>() == p["qk.bias"].grad().data<double>() + 3);

  std::vector<ParameterSpec> apart = specs;  // the numbers are those of the parameters, wherever they lie
  for (ParameterSpec& spec : apart) spec.part_of.clear();
  const Parameters other(apart, 1, DType::f64);
  for (const Parameters::Entry& entry : p.entries())
    CHECK(to_vector<double>(entry.variable.value()) == to_vector<double>(other[entry.name].value()));

  std::vector<ParameterSpec> wrong = specs;
  wrong[2].shape = Shape{2, 6};
  CHECK_THROWS_WITH_AS(Parameters(wrong, 1),
                       "Parameters: parts of qk.weight must differ in rows alone, got [3, 5] and [2, 6]", Error);
  wrong = specs;
  wrong[4].name = "qk.bias";
  CHECK_THROWS_WITH_AS(Parameters(wrong, 1), "Parameters: name qk.bias occurs twice", Error);
}

TEST_CASE("Parameters: initialization depends on the seed and the place alone") {
  const Parameters p(kSpecs, 1, DType::f64), same(kSpecs, 1, DType::f64), other(kSpecs, 2, DType::f64),
      single(kSpecs, 1);
  CHECK(to_vector<double>(p.values()) == to_vector<double>(same.values()));
  CHECK(to_vector<double>(p["a"].value()) != to_vector<double>(other["a"].value()));
  CHECK(p["a"].value().data<double>()[0] != p["c"].value().data<double>()[0]);
  CHECK(single["a"].value().data<float>()[3] == static_cast<float>(p["a"].value().data<double>()[3]));
}

TEST_CASE("Parameters: memory counts as parameters and gradients") {
  const MemoryStats before = Allocator::of(kCpu).stats();
  const Parameters p({{"w", Shape{1 << 14}, 0.5}}, 1);
  const MemoryStats after = Allocator::of(kCpu).stats();
  for (const auto category : {MemoryCategory::parameters, MemoryCategory::gradients})
    CHECK(after.current[static_cast<size_t>(category)] - before.current[static_cast<size_t>(category)] == (1 << 16));
}

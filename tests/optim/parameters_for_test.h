#pragma once
// Parameters and gradients that a test of an optimizer updates.

#include <vector>

#include "autograd/parameters.h"
#include "core/rng.h"

namespace lacuna {

/// A matrix, vectors shorter and longer than one piece of work, and a matrix that ends inside a piece.
inline std::vector<ParameterSpec> specs_for_test() {
  return {
      {"a.weight", {37, 5}, 0.5}, {"a.bias", {70001}, 0.5}, {"b.gain", {3}, 0.0, 1.0}, {"b.weight", {40000, 1}, 0.5}};
}

/// Fills every gradient with normal numbers of this scale, and copies them as f64, without the padding.
inline std::vector<double> draw_gradients(const Parameters& parameters, int64_t step, double scale) {
  const Rng rng(7, RandomPurpose::test);
  std::vector<double> all;
  for (size_t i = 0; i < parameters.entries().size(); ++i) {
    const Tensor& gradient = parameters.entries()[i].variable.grad();
    for (int64_t e = 0; e < gradient.numel(); ++e) {
      double g = scale * rng.normal({.step = step, .op = static_cast<int64_t>(i)}, e);
      if (gradient.dtype() == DType::f32)
        g = gradient.data<float>()[e] = static_cast<float>(g);
      else
        gradient.data<double>()[e] = g;
      all.push_back(g);
    }
  }
  return all;
}

/// All elements of the parameters in a flat buffer laid out like theirs, as f64, without the padding.
inline std::vector<double> elements(const Parameters& parameters, const Tensor& flat) {
  std::vector<double> all;
  for (const Parameters::Entry& entry : parameters.entries()) {
    const std::vector<double> part =
        to_vector<double>(to_dtype(clone(flat.view(entry.offset, entry.shape)), DType::f64));
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}
inline std::vector<double> elements(const Parameters& parameters) { return elements(parameters, parameters.values()); }

}  // namespace lacuna

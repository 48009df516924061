#include "autograd/parameters.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/parallel.h"
#include "core/rng.h"

namespace lacuna {
namespace {

constexpr int64_t kAlignment = 32;  // elements; 128 bytes in f32

int64_t aligned(int64_t elements) { return (elements + kAlignment - 1) / kAlignment * kAlignment; }

template <class T>
void initialize(const ParameterSpec& spec, int64_t index, const Rng& rng, T* data) {
  parallel_for(spec.shape.numel(), [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e)
      data[e] = static_cast<T>(spec.init_std > 0.0 ? spec.init_std * rng.normal({.op = index}, e) : spec.init_value);
  });
}

template <class T>
void initialize_waves(const ParameterSpec& spec, int64_t index, const Rng& rng, T* data) {
  const int64_t rows = spec.shape.dim(0), columns = spec.shape.dim(1);
  const double slowest = std::numbers::pi / static_cast<double>(rows);
  const double fastest = std::min(std::numbers::pi, 32.0 * slowest);
  for (int64_t j = 0; j < columns; ++j) {
    const double w = slowest * std::pow(fastest / slowest, rng.uniform({.op = index}, 2 * j));
    const double phase = 2.0 * std::numbers::pi * rng.uniform({.op = index}, 2 * j + 1);
    for (int64_t r = 0; r < rows; ++r)
      data[r * columns + j] =
          static_cast<T>(spec.init_std * std::numbers::sqrt2 * std::cos(w * static_cast<double>(r) + phase));
  }
}

}  // namespace

Parameters::Parameters(const std::vector<ParameterSpec>& specs, uint64_t seed, DType dtype, Device device)
    : count_(count_parameters(specs)) {
  int64_t size = 0;
  for (const ParameterSpec& spec : specs) {
    check(std::none_of(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.name == spec.name; }),
          "Parameters: name ", spec.name, " occurs twice");
    entries_.push_back({spec.name, spec.shape, size, {}});
    size += aligned(spec.shape.numel());
  }
  {
    const MemoryScope scope(MemoryCategory::parameters);
    values_ = zeros(Shape{size}, dtype, device);
  }
  {
    const MemoryScope scope(MemoryCategory::gradients);
    gradients_ = zeros(Shape{size}, dtype, device);
  }
  const Rng rng(seed, RandomPurpose::init);
  const Tensor host = device == kCpu ? values_ : zeros(Shape{size}, dtype);  // where the numbers are drawn
  for (size_t i = 0; i < specs.size(); ++i) {
    Entry& entry = entries_[i];
    entry.variable = Variable(values_.view(entry.offset, entry.shape), gradients_.view(entry.offset, entry.shape));
    dispatch_f32_f64(dtype, "Parameters", [&]<class T>() {
      T* const data = host.data<T>() + entry.offset;
      if (specs[i].waves)
        initialize_waves(specs[i], static_cast<int64_t>(i), rng, data);
      else
        initialize(specs[i], static_cast<int64_t>(i), rng, data);
    });
  }
  if (device != kCpu) copy(host, values_);
}

const Variable& Parameters::operator[](const std::string& name) const {
  for (const Entry& entry : entries_)
    if (entry.name == name) return entry.variable;
  fail("Parameters: there is no parameter ", name);
}

void Parameters::clear_gradients() const { fill(gradients_, 0.0); }

int64_t count_parameters(const std::vector<ParameterSpec>& specs) {
  int64_t count = 0;
  for (const ParameterSpec& spec : specs) count += spec.shape.numel();
  return count;
}

}  // namespace lacuna

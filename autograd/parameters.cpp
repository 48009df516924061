#include "autograd/parameters.h"

#include <algorithm>
#include <cmath>
#include <cstring>
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

using Entry = Parameters::Entry;

/// Where parameters and leaves begin in the flat buffers, before they have variables.
struct Layout {
  std::vector<Entry> entries, leaves;
  int64_t size = 0;
};

bool has_name(const std::vector<Entry>& entries, const std::string& name) {
  return std::any_of(entries.begin(), entries.end(), [&](const Entry& e) { return e.name == name; });
}

/// The shape of `above` and `below`, one on top of the other.
Shape stacked(const std::string& leaf, const Shape& above, const Shape& below) {
  std::vector<int64_t> dims(above.dims().begin(), above.dims().end());
  check(!dims.empty() && std::equal(dims.begin() + 1, dims.end(), below.dims().begin() + 1, below.dims().end()),
        "Parameters: parts of ", leaf, " must differ in rows alone, got ", above, " and ", below);
  dims[0] += below.dim(0);
  return Shape(dims);
}

Layout layout_of(const std::vector<ParameterSpec>& specs) {
  Layout layout;
  for (const ParameterSpec& spec : specs) {
    check(!has_name(layout.entries, spec.name), "Parameters: name ", spec.name, " occurs twice");
    layout.entries.push_back({spec.name, spec.shape, 0, {}});
  }
  for (size_t first = 0; first < specs.size(); ++first) {
    const bool whole = specs[first].part_of.empty();
    const std::string& name = whole ? specs[first].name : specs[first].part_of;
    if (!whole && has_name(layout.leaves, name)) continue;
    check(whole || !has_name(layout.entries, name), "Parameters: name ", name, " occurs twice");
    Entry leaf{name, specs[first].shape, layout.size, {}};
    layout.entries[first].offset = leaf.offset;
    for (size_t i = first + 1; i < specs.size() && !whole; ++i) {
      if (specs[i].part_of != name) continue;
      layout.entries[i].offset = leaf.offset + leaf.shape.numel();
      leaf.shape = stacked(name, leaf.shape, specs[i].shape);
    }
    layout.size += aligned(leaf.shape.numel());
    layout.leaves.push_back(std::move(leaf));
  }
  return layout;
}

}  // namespace

Parameters::Parameters(const std::vector<ParameterSpec>& specs, uint64_t seed, DType dtype, Device device,
                       DType rounded)
    : count_(count_parameters(specs)) {
  Layout layout = layout_of(specs);
  entries_ = std::move(layout.entries);
  leaves_ = std::move(layout.leaves);
  const int64_t size = layout.size;
  {
    const MemoryScope scope(MemoryCategory::parameters);
    values_ = zeros(Shape{size}, dtype, device);
    if (is_16_bit(rounded)) rounded_ = empty(Shape{size}, rounded, device);
  }
  {
    const MemoryScope scope(MemoryCategory::gradients);
    gradients_ = zeros(Shape{size}, dtype, device);
  }
  const Rng rng(seed, RandomPurpose::init);
  const Tensor host = device == kCpu ? values_ : zeros(Shape{size}, dtype);  // where the numbers are drawn
  for (size_t i = 0; i < specs.size(); ++i) {
    const Entry& entry = entries_[i];
    dispatch_f32_f64(dtype, "Parameters", [&]<class T>() {
      T* const data = host.data<T>() + entry.offset;
      if (specs[i].waves)
        initialize_waves(specs[i], static_cast<int64_t>(i), rng, data);
      else
        initialize(specs[i], static_cast<int64_t>(i), rng, data);
    });
  }
  if (device != kCpu) copy(host, values_);
  for (std::vector<Entry>* pieces : {&leaves_, &entries_})
    for (Entry& x : *pieces) {
      x.variable = Variable(values_.view(x.offset, x.shape), gradients_.view(x.offset, x.shape));
      if (rounded_.defined()) x.variable.keep_rounded(rounded_.view(x.offset, x.shape));
    }
  update_rounded();
}

const Variable& Parameters::operator[](const std::string& name) const {
  for (const std::vector<Entry>* pieces : {&leaves_, &entries_})
    for (const Entry& x : *pieces)
      if (x.name == name) return x.variable;
  fail("Parameters: there is no parameter ", name);
}

void Parameters::update_rounded() const {
  if (rounded_.defined()) copy(values_, rounded_);
}

void Parameters::check_rounded() const {
  if (!rounded_.defined()) return;
  for (const Entry& leaf : leaves_) {
    const Tensor kept = to_device(rounded_.view(leaf.offset, leaf.shape), kCpu);
    const Tensor current = to_device(to_dtype(values_.view(leaf.offset, leaf.shape), kept.dtype()), kCpu);
    check(std::memcmp(kept.raw(), current.raw(), static_cast<size_t>(kept.bytes())) == 0, "Parameters: the copy of ",
          leaf.name, " in ", kept.dtype(), " is out of date: whoever writes values calls update_rounded()");
  }
}

void Parameters::clear_gradients() const { fill(gradients_, 0.0); }

int64_t count_parameters(const std::vector<ParameterSpec>& specs) {
  int64_t count = 0;
  for (const ParameterSpec& spec : specs) count += spec.shape.numel();
  return count;
}

int64_t flat_size(const std::vector<ParameterSpec>& specs) { return layout_of(specs).size; }

}  // namespace lacuna

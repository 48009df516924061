#pragma once
// Contiguous, row-major arrays.

#include <cstdint>
#include <memory>
#include <vector>

#include "core/device.h"
#include "core/dtype.h"
#include "core/error.h"
#include "core/shape.h"
#include "core/storage.h"

namespace lacuna {

/// A contiguous row-major array of `shape` elements of one dtype on one device. A Tensor is a handle: copies, reshapes
/// and slices share the same Storage, and a const Tensor still gives access to mutable elements.
/// A default-constructed Tensor is undefined: it has no storage, and only `defined()` may be asked of it.
class Tensor {
 public:
  Tensor() = default;
  Tensor(std::shared_ptr<Storage> storage, int64_t byte_offset, Shape shape, DType dtype);

  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  DType dtype() const { return dtype_; }
  Device device() const { return storage_->device(); }
  int64_t rank() const { return shape_.rank(); }
  int64_t numel() const { return shape_.numel(); }
  int64_t dim(int64_t i) const { return shape_.dim(i); }
  int64_t bytes() const { return numel() * size_of(dtype_); }

  /// The first element, in the device's memory. `data<T>` throws Error when T is not the tensor's dtype.
  std::byte* raw() const { return storage_->data() + byte_offset_; }
  template <class T>
  T* data() const {
    check(dtype_ == dtype_of<T>, "Tensor: asked for ", dtype_of<T>, " elements of a tensor of ", dtype_);
    return reinterpret_cast<T*>(raw());
  }

  /// The same elements under another shape; throws Error when the number of elements differs.
  Tensor reshape(const Shape& shape) const;

  /// Rows [begin, end) of the outermost dimension; shares storage.
  Tensor slice(int64_t begin, int64_t end) const;

  /// `shape.numel()` elements that start `offset` elements into this tensor; shares storage.
  Tensor view(int64_t offset, const Shape& shape) const;

  /// Whether no other tensor shares the storage, so that nobody can see it change.
  bool unshared() const { return storage_.use_count() == 1; }

 private:
  std::shared_ptr<Storage> storage_;
  int64_t byte_offset_ = 0;
  Shape shape_;
  DType dtype_ = DType::f32;
};

Tensor empty(const Shape& shape, DType dtype, Device device = kCpu);  // not initialized
Tensor zeros(const Shape& shape, DType dtype, Device device = kCpu);
Tensor full(const Shape& shape, DType dtype, double value, Device device = kCpu);
Tensor empty_like(const Tensor& t);
Tensor zeros_like(const Tensor& t);

/// A tensor on the CPU with the given elements, row-major; throws Error when their number is not shape.numel().
template <class T>
Tensor from_vector(const std::vector<T>& elements, const Shape& shape);
/// The elements, from whatever device, once they are computed.
template <class T>
std::vector<T> to_vector(const Tensor& t);

/// The only element of a tensor of one, as to_vector.
double item(const Tensor& t);

/// Sets every element to `value`, rounded to the dtype.
void fill(const Tensor& t, double value);

/// Copies elements between tensors of one shape, converting dtypes (floating to floating, or equal). A copy between the
/// host and a GPU has happened when the call returns; one within a GPU is enqueued.
void copy(const Tensor& from, const Tensor& to);

/// A copy on another device; the same tensor when it is there already.
Tensor to_device(const Tensor& t, Device device);

/// A copy in another dtype; the same tensor when the dtype is already `dtype`.
Tensor to_dtype(const Tensor& t, DType dtype);

/// A copy in storage of its own.
Tensor clone(const Tensor& t);

/// y += x, element by element; shapes, dtypes and devices must agree. bf16 and f16 sums are f32, rounded once.
void add_in_place(const Tensor& y, const Tensor& x);

/// a + b in storage of its own; conditions as for add_in_place.
Tensor sum_of(const Tensor& a, const Tensor& b);

/// Calls `body.template operator()<T>()` with T the element type. Throws Error unless `dtype` is f32 or f64.
template <class Body>
void dispatch_f32_f64(DType dtype, const char* op, const Body& body) {
  switch (dtype) {
    case DType::f32: return body.template operator()<float>();
    case DType::f64: return body.template operator()<double>();
    default: fail(op, ": dtype must be f32 or f64, got ", dtype);
  }
}

/// The same for f64, f32, bf16 and f16.
template <class Body>
void dispatch_floating(DType dtype, const char* op, const Body& body) {
  switch (dtype) {
    case DType::bf16: return body.template operator()<bf16>();
    case DType::f16: return body.template operator()<f16>();
    default: dispatch_f32_f64(dtype, op, body);
  }
}

template <class T>
Tensor from_vector(const std::vector<T>& elements, const Shape& shape) {
  const Tensor t = empty(shape, dtype_of<T>);
  check(static_cast<int64_t>(elements.size()) == shape.numel(), "from_vector: ", shape, " needs ", shape.numel(),
        " elements, got ", elements.size());
  std::copy(elements.begin(), elements.end(), t.data<T>());
  return t;
}

template <class T>
std::vector<T> to_vector(const Tensor& t) {
  const Tensor host = to_device(t, kCpu);
  return std::vector<T>(host.data<T>(), host.data<T>() + host.numel());
}

}  // namespace lacuna

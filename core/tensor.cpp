#include "core/tensor.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "core/cuda/runtime.h"
#include "core/cuda/tensor_kernels.h"
#include "core/dispatch.h"
#include "core/parallel.h"

namespace lacuna {
namespace {

template <class Body>
void dispatch_any(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::f64: return body.template operator()<double>();
    case DType::f32: return body.template operator()<float>();
    case DType::bf16: return body.template operator()<bf16>();
    case DType::f16: return body.template operator()<f16>();
    case DType::i64: return body.template operator()<int64_t>();
    case DType::i32: return body.template operator()<int32_t>();
    case DType::u8: return body.template operator()<uint8_t>();
  }
  fail("Tensor: unknown dtype ", static_cast<int>(dtype));
}

/// `To(x)`, by way of f32 where a 16-bit type has no conversion of its own.
template <class To, class From>
To convert(From x) {
  if constexpr (std::is_same_v<To, bf16> || std::is_same_v<To, f16>)
    return To(static_cast<float>(x));
  else
    return static_cast<To>(x);
}

/// The element nearest to `value`; throws Error when an integer type cannot hold it.
template <class T>
T rounded_to(double value) {
  if constexpr (std::is_integral_v<T>) {
    constexpr double kLowest = static_cast<double>(std::numeric_limits<T>::min());
    constexpr double kBeyond = static_cast<double>(std::numeric_limits<T>::max()) + 1.0;  // exact, for i64 too
    const double nearest = std::nearbyint(value);
    check(nearest >= kLowest && nearest < kBeyond, "fill: value must fit ", dtype_of<T>, ", got ", value);
    return static_cast<T>(nearest);
  } else {
    return convert<T>(value);
  }
}

}  // namespace

Tensor::Tensor(std::shared_ptr<Storage> storage, int64_t byte_offset, Shape shape, DType dtype)
    : storage_(std::move(storage)), byte_offset_(byte_offset), shape_(shape), dtype_(dtype) {
  check(byte_offset_ >= 0 && byte_offset_ + bytes() <= storage_->bytes(), "Tensor: ", shape, " of ", dtype, " at byte ",
        byte_offset, " does not fit its storage of ", storage_->bytes(), " bytes");
}

Tensor Tensor::reshape(const Shape& shape) const {
  check(shape.numel() == numel(), "reshape: ", shape_, " has ", numel(), " elements, ", shape, " needs ",
        shape.numel());
  return Tensor(storage_, byte_offset_, shape, dtype_);
}

Tensor Tensor::slice(int64_t begin, int64_t end) const {
  check(rank() >= 1 && begin >= 0 && begin <= end && end <= dim(0), "slice: rows [", begin, ", ", end,
        ") do not exist in ", shape_);
  std::vector<int64_t> dims(shape_.dims().begin(), shape_.dims().end());
  const int64_t row_bytes = dims[0] == 0 ? 0 : bytes() / dims[0];
  dims[0] = end - begin;
  return Tensor(storage_, byte_offset_ + begin * row_bytes, Shape(std::span<const int64_t>(dims)), dtype_);
}

Tensor Tensor::view(int64_t offset, const Shape& shape) const {
  check(offset >= 0 && offset <= numel() - shape.numel(), "view: ", shape, " at element ", offset, " does not fit in ",
        shape_);
  return Tensor(storage_, byte_offset_ + offset * size_of(dtype_), shape, dtype_);
}

Tensor empty(const Shape& shape, DType dtype, Device device) {
  int64_t bytes = 0;
  check(!__builtin_mul_overflow(shape.numel(), size_of(dtype), &bytes), "empty: size of ", shape, " overflows");
  return Tensor(std::make_shared<Storage>(bytes, device), 0, shape, dtype);
}

Tensor zeros(const Shape& shape, DType dtype, Device device) { return full(shape, dtype, 0.0, device); }

Tensor full(const Shape& shape, DType dtype, double value, Device device) {
  const Tensor t = empty(shape, dtype, device);
  fill(t, value);
  return t;
}

Tensor empty_like(const Tensor& t) { return empty(t.shape(), t.dtype(), t.device()); }
Tensor zeros_like(const Tensor& t) { return zeros(t.shape(), t.dtype(), t.device()); }

void fill(const Tensor& t, double value) {
  [[maybe_unused]] const Stream stream = current_stream(t.device());
  dispatch_any(t.dtype(), [&]<class T>() {
    T* const data = t.data<T>();
    const T element = rounded_to<T>(value);
#if LACUNA_HAS_CUDA
    if (stream.device.type == DeviceType::cuda) return gpu::fill(stream, data, t.numel(), &element, sizeof(T));
#endif
    parallel_for(t.numel(), [&](int64_t begin, int64_t end) { std::fill(data + begin, data + end, element); });
  });
}

#if LACUNA_HAS_CUDA
namespace {

// One of both at least is on a GPU.
void copy_with_gpu(const Tensor& from, const Tensor& to) {
  if (from.dtype() != to.dtype() && from.device() != to.device()) {  // converted where it is, then moved
    copy(to_dtype(from, to.dtype()), to);
    return;
  }
  const Stream stream = current_stream(to.device() == kCpu ? from.device() : to.device());
  if (from.dtype() != to.dtype()) {
    gpu::convert(stream, from, to);
  } else if (from.device() == to.device()) {
    gpu::copy_bytes(stream, to.raw(), from.raw(), from.bytes());
  } else if (from.device() == kCpu || to.device() == kCpu) {
    gpu::copy_bytes(stream, to.raw(), from.raw(), from.bytes());
    gpu::synchronize(stream);  // host memory may be freed or changed when this returns
  } else {
    copy(to_device(from, kCpu), to);  // between GPUs
  }
}

}  // namespace
#endif

void copy(const Tensor& from, const Tensor& to) {
  check(from.shape() == to.shape(), "copy: shapes must agree, got ", from.shape(), " and ", to.shape());
  check(from.dtype() == to.dtype() || (is_floating(from.dtype()) && is_floating(to.dtype())), "copy: cannot convert ",
        from.dtype(), " to ", to.dtype());
#if LACUNA_HAS_CUDA
  if (from.device() != kCpu || to.device() != kCpu) return copy_with_gpu(from, to);
#endif
  if (from.dtype() == to.dtype()) {
    std::memmove(to.raw(), from.raw(), static_cast<size_t>(from.bytes()));
    return;
  }
  dispatch_any(from.dtype(), [&]<class From>() {
    dispatch_any(to.dtype(), [&]<class To>() {
      if constexpr (!std::is_integral_v<From> && !std::is_integral_v<To>) {
        const From* const source = from.data<From>();
        To* const target = to.data<To>();
        parallel_for(from.numel(), [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) target[i] = convert<To>(source[i]);
        });
      }
    });
  });
}

Tensor to_dtype(const Tensor& t, DType dtype) {
  if (t.dtype() == dtype) return t;
  const Tensor result = empty(t.shape(), dtype, t.device());
  copy(t, result);
  return result;
}

Tensor to_device(const Tensor& t, Device device) {
  if (t.device() == device) return t;
  const Tensor result = empty(t.shape(), t.dtype(), device);
  copy(t, result);
  return result;
}

double item(const Tensor& t) {
  check(t.numel() == 1, "item: needs one element, got ", t.shape());
  return *to_dtype(to_device(t, kCpu), DType::f64).data<double>();
}

Tensor clone(const Tensor& t) {
  const Tensor result = empty_like(t);
  copy(t, result);
  return result;
}

namespace {

void add_into(const char* op, const Tensor& a, const Tensor& b, const Tensor& y) {
  check(a.shape() == b.shape() && a.dtype() == b.dtype(), op, ": needs two tensors alike, got ", a.dtype(), ' ',
        a.shape(), " and ", b.dtype(), ' ', b.shape());
  check(a.device() == b.device(), op, ": needs two tensors on one device, got ", a.device(), " and ", b.device());
  check(is_floating(a.dtype()), op, ": dtype must be floating, got ", a.dtype());
  [[maybe_unused]] const Stream stream = current_stream(a.device());
#if LACUNA_HAS_CUDA
  if (stream.device.type == DeviceType::cuda) return gpu::add(stream, op, a, b, y);
#endif
  dispatch_any(a.dtype(), [&]<class T>() {
    const T* const left = a.data<T>();
    const T* const right = b.data<T>();
    T* const sum = y.data<T>();
    parallel_for(a.numel(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) sum[i] = T(left[i] + right[i]);
    });
  });
}

}  // namespace

void add_in_place(const Tensor& y, const Tensor& x) { add_into("add_in_place", y, x, y); }

Tensor sum_of(const Tensor& a, const Tensor& b) {
  const Tensor y = empty_like(a);
  add_into("sum_of", a, b, y);
  return y;
}

}  // namespace lacuna

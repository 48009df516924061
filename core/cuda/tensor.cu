#include <cstring>

#include "core/cuda/kernel.h"
#include "core/cuda/tensor_kernels.h"

namespace lacuna::gpu {
namespace {

// x[i] = element.   thread: one element
template <class T>
__global__ void fill_kernel(T element, int64_t count, T* x) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) x[i] = element;
}

// to[i] = from[i], rounded once: f64 goes to 16 bits by way of f32, as on the CPU.   thread: one element
template <class From, class To>
__global__ void convert_kernel(const From* from, int64_t count, To* to) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  if constexpr (device_dtype<From> == DType::f64)
    to[i] = round_to<To>(static_cast<float>(from[i]));
  else
    to[i] = round_to<To>(to_float(from[i]));
}

template <class T>
void fill_with(Stream stream, void* data, int64_t count, const void* element) {
  T bits;
  std::memcpy(&bits, element, sizeof(T));
  launch(stream, fill_kernel<T>, dim3(grid_of(ceil_div(count, kBlockThreads), "fill")), dim3(kBlockThreads), 0, bits, count,
         static_cast<T*>(data));
}

struct Add {
  static constexpr int kInputs = 2;
  __device__ float operator()(float a, float b) const { return a + b; }
};

}  // namespace

void check_has_kernels(Device device) {
  compute_stream(device);  // makes it current
  const std::string reason = why_no_code(fill_kernel<uint16_t>);
  const DeviceProperties& p = properties(device);
  check(reason.empty(), device, " is ", p.name, " of compute capability ", p.major, '.', p.minor,
        "; this build has no kernels for it: ", reason);
}

void fill(Stream stream, void* data, int64_t count, const void* element, int64_t size) {
  if (count == 0) return;
  const auto* const bytes = static_cast<const unsigned char*>(element);
  if (std::all_of(bytes, bytes + size, [&](unsigned char b) { return b == bytes[0]; }))
    return set_bytes(stream, data, bytes[0], count * size);
  switch (size) {
    case 2: return fill_with<uint16_t>(stream, data, count, element);
    case 4: return fill_with<uint32_t>(stream, data, count, element);
    default: return fill_with<uint64_t>(stream, data, count, element);
  }
}

void convert(Stream stream, const Tensor& from, const Tensor& to) {
  if (from.numel() == 0) return;
  const auto run = [&]<class From, class To>() {
    launch(stream, convert_kernel<From, To>, dim3(grid_of(ceil_div(from.numel(), kBlockThreads), "copy")), dim3(kBlockThreads), 0,
           data<From>(from), from.numel(), data<To>(to));
  };
  const auto with_target = [&]<class From>() {
    switch (to.dtype()) {
      case DType::f64: return run.template operator()<From, double>();
      case DType::f32: return run.template operator()<From, float>();
      case DType::bf16: return run.template operator()<From, __nv_bfloat16>();
      default: return run.template operator()<From, __half>();
    }
  };
  if (from.dtype() == DType::f64)
    with_target.template operator()<double>();
  else
    dispatch_float(from.dtype(), "copy", with_target);
}

void add(Stream stream, const char* op, const Tensor& a, const Tensor& b, const Tensor& y) {
  dispatch_float(y.dtype(), op, [&]<class T>() { elementwise<T>(stream, op, Add{}, a, b, y); });
}

}  // namespace lacuna::gpu

#include "core/parallel.h"
#include "ops/add/add_kernels.h"

namespace lacuna::cpu {

void add(Stream, const Tensor& a, const Tensor& b, const Tensor& y) {
  dispatch_f32_f64(a.dtype(), "add", [&]<class T>() {
    const T* const pa = a.data<T>();
    const T* const pb = b.data<T>();
    T* const py = y.data<T>();
    parallel_for(y.numel(), [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) py[i] = pa[i] + pb[i];
    });
  });
}

}  // namespace lacuna::cpu

#include "core/cuda/blas.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>
#include <vector>

#include "core/cuda/runtime.h"

namespace lacuna::gpu {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;  // what NVIDIA recommends for sm_90

#define LACUNA_TEXT_OF(x) #x
#define LACUNA_TEXT(x) LACUNA_TEXT_OF(x)

/// cuBLASLt, opened when the first product needs it, so that programs start where it is not installed.
struct Library {
  std::string problem;
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtGetVersion) version = nullptr;
  decltype(&cublasLtGetStatusName) status_name = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;

  Library() {
    constexpr const char* kName = "libcublasLt.so." LACUNA_TEXT(CUBLAS_VER_MAJOR);
    void* const handle = ::dlopen(kName, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
      problem = concat(kName, " cannot be opened: ", ::dlerror(),
                       " (it is in the CUDA Toolkit; LD_LIBRARY_PATH can name its folder)");
      return;
    }
    const auto find = [&](auto& function, const char* symbol) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(handle, symbol));
      if (!function && problem.empty()) problem = concat(kName, " has no ", symbol);
    };
    find(create, "cublasLtCreate");
    find(version, "cublasLtGetVersion");
    find(status_name, "cublasLtGetStatusName");
    find(matmul, "cublasLtMatmul");
    find(heuristic, "cublasLtMatmulAlgoGetHeuristic");
    find(desc_create, "cublasLtMatmulDescCreate");
    find(desc_destroy, "cublasLtMatmulDescDestroy");
    find(desc_set, "cublasLtMatmulDescSetAttribute");
    find(layout_create, "cublasLtMatrixLayoutCreate");
    find(layout_destroy, "cublasLtMatrixLayoutDestroy");
    find(preference_create, "cublasLtMatmulPreferenceCreate");
    find(preference_destroy, "cublasLtMatmulPreferenceDestroy");
    find(preference_set, "cublasLtMatmulPreferenceSetAttribute");
  }
};

const Library& library() {
  static const Library one;
  return one;
}

/// A place in a product, for messages: "linear: [3072, 256] x [256, 512] in bf16".
struct Site {
  const char* op;
  int64_t m, n, k;
  DType dtype;

  std::string name() const { return concat(op, ": [", m, ", ", k, "] x [", k, ", ", n, "] in ", dtype); }

  void check(cublasStatus_t status, const char* what) const {
    if (status != CUBLAS_STATUS_SUCCESS) fail(name(), ": ", what, ": ", library().status_name(status));
  }
};

bool report_no_epilogue(const Site& site, const MatrixProduct& product) {
  std::fprintf(stderr, "%s: cuBLASLt cannot %s beside; it takes a pass of its own\n", site.name().c_str(),
               product.bias.defined() ? "add the bias" : "sum the gradient of the bias");
  return false;
}

/// One of the library's descriptors, destroyed with its scope.
template <class T>
class Owned {
 public:
  explicit Owned(cublasStatus_t (*destroy)(T)) : destroy_(destroy) {}
  ~Owned() {
    if (value_) destroy_(value_);
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  T* address() { return &value_; }
  T get() const { return value_; }

 private:
  cublasStatus_t (*destroy_)(T);
  T value_ = nullptr;
};

cudaDataType_t type_of(DType dtype) {
  return dtype == DType::f32 ? CUDA_R_32F : dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_16F;
}

/// What an algorithm is chosen for: m, n, k, transposes, dtypes, beta, bias (or the negative: sums), alignments.
/// Numbers, so that it is also its place in a list.
using Key = std::array<int64_t, 11>;

/// An algorithm of all zeros is kept where the library has none with the bias or sums.
bool exists(const cublasLtMatmulAlgo_t& algorithm) {
  return std::any_of(std::begin(algorithm.data), std::end(algorithm.data), [](uint64_t word) { return word != 0; });
}

struct Handle {
  cublasLtHandle_t handle = nullptr;
  Tensor workspace;
  std::map<Key, cublasLtMatmulAlgo_t> algorithms;
};

std::mutex g_mutex;

Handle& handle_of(Device device) {
  static std::map<int, Handle> handles;
  check(library().problem.empty(), "cuBLASLt: ", library().problem);
  Handle& h = handles[device.index];
  if (!h.handle) {
    const cublasStatus_t status = library().create(&h.handle);
    check(status == CUBLAS_STATUS_SUCCESS, "cuBLASLt: cannot start on ", device, ": ",
          status == CUBLAS_STATUS_SUCCESS ? "" : library().status_name(status));
    const MemoryScope scope(MemoryCategory::workspace);
    h.workspace = empty({kWorkspaceBytes}, DType::u8, device);
  }
  return h;
}

/// The largest power of two up to 256 that divides an address.
int64_t alignment_of(const Tensor& t) {
  const auto address = reinterpret_cast<uintptr_t>(t.raw()) | 256;
  return static_cast<int64_t>(address & (~address + 1));
}

std::string heading(Device device) {
  const size_t version = library().version();
  const DeviceProperties& p = properties(device);
  return concat("cuBLASLt ", version, " on ", p.name, " sm_", p.major, p.minor);
}

}  // namespace

// cuBLASLt counts columns first: the row-major C = op(A) op(B) is its C^T = op(B)^T op(A)^T, and a row-major matrix is
// its own transpose there. So its A is our B, and the bias, one number for each of its rows, is one for each column.
// BGRADB sums its op(B), our op(A)^T, over k; it writes them, whatever beta is.
bool matrix_product(Stream stream, const char* op, const MatrixProduct& product) {
  const auto& [transpose_a, transpose_b, a, b, beta, c, bias, sums] = product;
  const int64_t m = c.dim(0), n = c.dim(1), k = a.dim(transpose_a ? 0 : 1);
  const Site site{op, m, n, k, a.dtype()};
  check(a.dtype() == b.dtype() && (a.dtype() == DType::f32 || a.dtype() == DType::bf16 || a.dtype() == DType::f16), op,
        ": on a GPU matrices must be f32, bf16 or f16 and alike, got ", a.dtype(), " and ", b.dtype());
  check(c.dtype() == a.dtype() || c.dtype() == DType::f32, op, ": the product must be ", a.dtype(), " or f32, got ",
        c.dtype());
  check(!bias.defined() || !sums.defined(), op, ": a product has a bias or sums, not both");
  if (m == 0 || n == 0) return !sums.defined();
  const bool epilogue_wanted = bias.defined() || sums.defined();
  if (k == 0) {  // a sum of nothing, as the gradient of a weight that met no rows
    check(!bias.defined() && (beta == 0.0 || beta == 1.0), op, ": needs at least one column in x, got ", a.shape());
    if (beta == 0.0) fill(c, 0.0);
    if (sums.defined()) fill(sums, 0.0);
    return true;
  }

  const std::lock_guard lock(g_mutex);
  Handle& h = handle_of(stream.device);
  const Library& lt = library();

  Owned<cublasLtMatmulDesc_t> desc(lt.desc_destroy);
  site.check(lt.desc_create(desc.address(), CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing the product");
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    site.check(lt.desc_set(desc.get(), attribute, &value, sizeof(value)), "describing the product");
  };
  const cublasOperation_t op_first = transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t op_second = transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
  set(CUBLASLT_MATMUL_DESC_TRANSA, op_first);
  set(CUBLASLT_MATMUL_DESC_TRANSB, op_second);
  if (epilogue_wanted) {
    const Tensor& vector = bias.defined() ? bias : sums;
    const cublasLtEpilogue_t epilogue = bias.defined() ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_BGRADB;
    const void* const pointer = vector.raw();
    const cudaDataType_t type = type_of(vector.dtype());
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, pointer);
    set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type);
  }

  Owned<cublasLtMatrixLayout_t> first(lt.layout_destroy), second(lt.layout_destroy), result(lt.layout_destroy);
  const auto layout = [&](Owned<cublasLtMatrixLayout_t>& to, const Tensor& t) {
    site.check(lt.layout_create(to.address(), type_of(t.dtype()), static_cast<uint64_t>(t.dim(1)),
                                static_cast<uint64_t>(t.dim(0)), std::max<int64_t>(1, t.dim(1))),
               "describing a matrix");
  };
  layout(first, b);
  layout(second, a);
  layout(result, c);

  const Key key{m,
                n,
                k,
                transpose_a,
                transpose_b,
                static_cast<int64_t>(a.dtype()),
                static_cast<int64_t>(c.dtype()),
                beta != 0.0,
                bias.defined()   ? alignment_of(bias)
                : sums.defined() ? -alignment_of(sums)
                                 : 0,
                alignment_of(a) << 16 | alignment_of(b),
                alignment_of(c)};
  auto chosen = h.algorithms.find(key);
  if (chosen == h.algorithms.end()) {
    Owned<cublasLtMatmulPreference_t> preference(lt.preference_destroy);
    site.check(lt.preference_create(preference.address()), "choosing an algorithm");
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      site.check(lt.preference_set(preference.get(), attribute, &value, sizeof(value)), "choosing an algorithm");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspaceBytes));
    // Splits of k are summed in f32 from the workspace: one order, and no rounding to 16 bits in between.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(alignment_of(b)));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(alignment_of(a)));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(alignment_of(c)));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(alignment_of(c)));
    cublasLtMatmulHeuristicResult_t best{};
    int found = 0;
    const cublasStatus_t status = lt.heuristic(h.handle, desc.get(), first.get(), second.get(), result.get(),
                                               result.get(), preference.get(), 1, &best, &found);
    if (!epilogue_wanted) {
      site.check(status, "choosing an algorithm");
      check(found > 0, op, ": cuBLASLt has no algorithm for [", m, ", ", k, "] x [", k, ", ", n, "] in ", a.dtype());
    }
    chosen = h.algorithms.emplace(key, cublasLtMatmulAlgo_t{}).first;
    if (status != CUBLAS_STATUS_SUCCESS || found == 0) return report_no_epilogue(site, product);
    chosen->second = best.algo;
  }
  if (epilogue_wanted && !exists(chosen->second)) return false;

  const float one = 1.0f, beta_f32 = static_cast<float>(beta);
  const cublasStatus_t status = lt.matmul(h.handle, desc.get(), &one, b.raw(), first.get(), a.raw(), second.get(),
                                          &beta_f32, c.raw(), result.get(), c.raw(), result.get(), &chosen->second,
                                          h.workspace.raw(), kWorkspaceBytes, static_cast<cudaStream_t>(stream.native));
  if (epilogue_wanted && status == CUBLAS_STATUS_NOT_SUPPORTED) {  // it has launched nothing
    chosen->second = {};
    return report_no_epilogue(site, product);
  }
  site.check(status, "multiplying");
  return true;
}

void check_products(Device device) {
  const std::lock_guard lock(g_mutex);
  handle_of(device);
}

std::string matrix_product_choices(Device device) {
  const std::lock_guard lock(g_mutex);
  std::string text = heading(device) + "\n";
  for (const auto& [key, algorithm] : handle_of(device).algorithms) {
    for (const int64_t number : key) text += concat(number, ' ');
    for (const uint64_t word : algorithm.data) text += concat(word, ' ');
    text.back() = '\n';
  }
  return text;
}

std::string take_over_choices(Device device, const std::string& choices) {
  const std::lock_guard lock(g_mutex);
  Handle& h = handle_of(device);
  std::istringstream lines(choices);
  std::string line;
  std::getline(lines, line);
  if (line != heading(device))
    return concat("matrix products may differ in their last bits: this is ", heading(device), ", before it was ", line);
  while (std::getline(lines, line)) {
    std::istringstream numbers(line);
    Key key{};
    cublasLtMatmulAlgo_t algorithm{};
    for (int64_t& number : key) numbers >> number;
    for (uint64_t& word : algorithm.data) numbers >> word;
    check(!numbers.fail(), "matrix products: a stored choice is damaged: ", line);
    h.algorithms[key] = algorithm;
  }
  return "";
}

}  // namespace lacuna::gpu

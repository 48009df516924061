// A cuBLASLt for the test of core/cuda/blas.cpp: the functions that it uses, on host memory, in plain loops that follow
// NVIDIA's documentation. Matrices are column-major; what is called does its work at once.
//
// An algorithm remembers what it was chosen for, and is refused for anything else. With a bias, or sums of B, there is
// none for an odd k, which a library may say in several ways, and those for a D of 11 rows are refused when they are
// used. There is none for a D of 13 rows, and products with a D of 17 rows fail.

#include <cublasLt.h>

#include <cstdint>
#include <vector>

namespace {

struct Desc {
  int32_t op_a = CUBLAS_OP_N, op_b = CUBLAS_OP_N;
  uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  void* bias = nullptr;
  int32_t bias_type = -1;
};

struct Layout {
  cudaDataType type;
  uint64_t rows, cols;
  int64_t leading;
};

struct Preference {
  uint64_t workspace = 0;
  uint32_t reductions = 0;
  uint32_t alignment[4] = {256, 256, 256, 256};  // of A, B, C, D
};

int g_choices = 0;

float read(const void* x, cudaDataType type, int64_t i) {
  if (type == CUDA_R_32F) return static_cast<const float*>(x)[i];
  if (type == CUDA_R_16BF) return __bfloat162float(static_cast<const __nv_bfloat16*>(x)[i]);
  return __half2float(static_cast<const __half*>(x)[i]);
}

void write(void* x, cudaDataType type, int64_t i, float value) {
  if (type == CUDA_R_32F)
    static_cast<float*>(x)[i] = value;
  else if (type == CUDA_R_16BF)
    static_cast<__nv_bfloat16*>(x)[i] = __float2bfloat16_rn(value);
  else
    static_cast<__half*>(x)[i] = __float2half_rn(value);
}

struct Product {
  const Desc& desc;
  const Layout &a, &b, &c, &d;

  int64_t m() const { return static_cast<int64_t>(d.rows); }
  int64_t n() const { return static_cast<int64_t>(d.cols); }
  int64_t k() const { return static_cast<int64_t>(desc.op_a == CUBLAS_OP_N ? a.cols : a.rows); }
  bool plain() const { return desc.epilogue == CUBLASLT_EPILOGUE_DEFAULT; }
  bool sums() const { return desc.epilogue == CUBLASLT_EPILOGUE_BGRADB; }
  bool fits() const {
    const bool a_t = desc.op_a == CUBLAS_OP_T, b_t = desc.op_b == CUBLAS_OP_T;
    const auto dense = [](const Layout& x) { return x.leading >= static_cast<int64_t>(x.rows); };
    return (a_t ? a.cols : a.rows) == d.rows && (b_t ? b.rows : b.cols) == d.cols &&
           (a_t ? a.rows : a.cols) == (b_t ? b.cols : b.rows) && c.rows == d.rows && c.cols == d.cols &&
           a.type == b.type && c.type == d.type && dense(a) && dense(b) && dense(d);
  }
  uint64_t fingerprint() const {
    uint64_t hash = 1;
    for (const int64_t x : {m(), n(), k(), int64_t{desc.op_a}, int64_t{desc.op_b}, int64_t{a.type}, int64_t{d.type},
                            int64_t{desc.epilogue}})
      hash = hash * 1000003 + static_cast<uint64_t>(x);
    return hash | 1;
  }
};

template <class T>
T& as(void* opaque) {
  return *static_cast<T*>(opaque);
}

template <class T>
cublasStatus_t set(T& field, const void* value, size_t bytes) {
  if (bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  field = *static_cast<const T*>(value);
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace

extern "C" {

int lacuna_algorithms_chosen() { return g_choices; }

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  static int one;
  *handle = reinterpret_cast<cublasLtHandle_t>(&one);
  return CUBLAS_STATUS_SUCCESS;
}
size_t cublasLtGetVersion() { return 1; }
const char* cublasLtGetStatusName(cublasStatus_t status) {
  return status == CUBLAS_STATUS_EXECUTION_FAILED ? "CUBLAS_STATUS_EXECUTION_FAILED" : "another status";
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute, cudaDataType_t scale) {
  *desc = reinterpret_cast<cublasLtMatmulDesc_t>(new Desc);
  return compute == CUBLAS_COMPUTE_32F && scale == CUDA_R_32F ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete &as<Desc>(desc);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t opaque, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  Desc& desc = as<Desc>(opaque);
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA: return set(desc.op_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB: return set(desc.op_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: return set(desc.epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return set(desc.bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: return set(desc.bias_type, value, bytes);
    default: return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, uint64_t rows,
                                          uint64_t cols, int64_t leading) {
  *layout = reinterpret_cast<cublasLtMatrixLayout_t>(new Layout{type, rows, cols, leading});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete &as<Layout>(layout);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = reinterpret_cast<cublasLtMatmulPreference_t>(new Preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete &as<Preference>(preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t opaque,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    size_t bytes) {
  Preference& preference = as<Preference>(opaque);
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: return set(preference.workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: return set(preference.reductions, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: return set(preference.alignment[0], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: return set(preference.alignment[1], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: return set(preference.alignment[2], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: return set(preference.alignment[3], value, bytes);
    default: return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                              cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t opaque, int,
                                              cublasLtMatmulHeuristicResult_t* results, int* found) {
  ++g_choices;
  *found = 0;
  const Product product{as<Desc>(desc), as<Layout>(a), as<Layout>(b), as<Layout>(c), as<Layout>(d)};
  if (!product.fits()) return CUBLAS_STATUS_INVALID_VALUE;
  if (!product.plain() && product.k() % 2 == 1)  // whatever a library may answer that has no such algorithm
    return product.k() == 5   ? CUBLAS_STATUS_NOT_SUPPORTED
           : product.k() == 7 ? CUBLAS_STATUS_INVALID_VALUE
                              : CUBLAS_STATUS_SUCCESS;
  if (product.m() == 13) return CUBLAS_STATUS_SUCCESS;
  *found = 1;
  results[0].algo = {};
  results[0].algo.data[0] = product.fingerprint();
  for (int i = 0; i < 4; ++i) results[0].algo.data[1 + i] = as<Preference>(opaque).alignment[i];
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t layout_a, const void* b, cublasLtMatrixLayout_t layout_b,
                              const void* beta, const void* c, cublasLtMatrixLayout_t layout_c, void* d,
                              cublasLtMatrixLayout_t layout_d, const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                              size_t workspace_bytes, cudaStream_t) {
  const Product product{as<Desc>(desc), as<Layout>(layout_a), as<Layout>(layout_b), as<Layout>(layout_c),
                        as<Layout>(layout_d)};
  const void* const pointers[] = {a, b, c, d};
  bool aligned = workspace && workspace_bytes > 0;
  for (int i = 0; i < 4; ++i) aligned &= reinterpret_cast<uintptr_t>(pointers[i]) % algorithm->data[1 + i] == 0;
  if (!product.fits() || !aligned || algorithm->data[0] != product.fingerprint()) return CUBLAS_STATUS_INVALID_VALUE;
  if (product.m() == 17) return CUBLAS_STATUS_EXECUTION_FAILED;
  if (product.m() == 11 && !product.plain()) return CUBLAS_STATUS_NOT_SUPPORTED;

  const auto element_a = [&](int64_t i, int64_t t) {
    return read(a, product.a.type,
                product.desc.op_a == CUBLAS_OP_N ? i + t * product.a.leading : t + i * product.a.leading);
  };
  const auto element_b = [&](int64_t t, int64_t j) {
    return read(b, product.b.type,
                product.desc.op_b == CUBLAS_OP_N ? t + j * product.b.leading : j + t * product.b.leading);
  };
  const float scale = *static_cast<const float*>(alpha), kept = *static_cast<const float*>(beta);
  const auto bias_type = static_cast<cudaDataType>(product.desc.bias_type);
  for (int64_t j = 0; j < product.n(); ++j)
    for (int64_t i = 0; i < product.m(); ++i) {
      float sum = 0.0f;
      for (int64_t t = 0; t < product.k(); ++t) sum += element_a(i, t) * element_b(t, j);
      sum *= scale;
      if (kept != 0.0f) sum += kept * read(c, product.c.type, i + j * product.c.leading);
      if (product.desc.epilogue == CUBLASLT_EPILOGUE_BIAS) sum += read(product.desc.bias, bias_type, i);
      write(d, product.d.type, i + j * product.d.leading, sum);
    }
  for (int64_t j = 0; product.sums() && j < product.n(); ++j) {
    float sum = 0.0f;
    for (int64_t t = 0; t < product.k(); ++t) sum += element_b(t, j);
    write(product.desc.bias, bias_type, j, sum);
  }
  return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"

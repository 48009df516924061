// A libcuda.so.1 for tests of machines whose driver is no use: it is of the version LACUNA_DRIVER_VERSION (12020 for
// CUDA 12.2) and has no GPU. The CUDA runtime looks for all functions first, so all are there, and calls few of them.

#include <cstdlib>
#include <string_view>

extern "C" {

int cuDriverGetVersion(int* version) {
  const char* const text = std::getenv("LACUNA_DRIVER_VERSION");
  *version = text ? std::atoi(text) : 0;
  return 0;
}

int cuInit(unsigned) { return 100; }  // CUDA_ERROR_NO_DEVICE

int any_other() { return 999; }  // CUDA_ERROR_UNKNOWN

int cuGetProcAddress_v2(const char* name, void** function, int, unsigned long long, int* found) {
  const std::string_view asked = name;
  *function = asked == "cuInit"               ? reinterpret_cast<void*>(cuInit)
              : asked == "cuDriverGetVersion" ? reinterpret_cast<void*>(cuDriverGetVersion)
              : asked == "cuGetProcAddress"   ? reinterpret_cast<void*>(cuGetProcAddress_v2)
                                              : reinterpret_cast<void*>(any_other);
  if (found) *found = 0;  // CU_GET_PROC_ADDRESS_SUCCESS
  return 0;
}

}  // extern "C"

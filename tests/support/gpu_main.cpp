// The main program of tests that need a GPU: skipped, which CTest knows by exit code 77, on a machine without one.

#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>

#include "core/cuda/runtime.h"

int main(int argc, char** argv) {
  if (lacuna::gpu::device_count() == 0) {
    std::printf("skipped: %s\n", lacuna::gpu::why_no_device().c_str());
    return 77;
  }
  return doctest::Context(argc, argv).run();
}

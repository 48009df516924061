# The GPU backend. After this file LACUNA_CUDA is true exactly when it is built, and lacuna::cuda has what its host code
# needs. CUDA Toolkit 12.4 to 13.
#
# One binary serves machines with a GPU and without: the CUDA runtime is linked statically and finds the driver when it
# runs, cuBLASLt is opened by core/cuda/blas.cpp when a GPU is used.
lacuna_backend_option(LACUNA_CUDA CUDA)
set(lacuna_cuda_problem "")

if(NOT LACUNA_CUDA STREQUAL "OFF")
  find_package(CUDAToolkit QUIET)
  if(NOT CUDAToolkit_FOUND OR NOT EXISTS "${CUDAToolkit_NVCC_EXECUTABLE}")
    set(lacuna_cuda_problem "not found: no nvcc in PATH, $CUDA_PATH or /usr/local/cuda")
  elseif(CUDAToolkit_VERSION VERSION_LESS 12.4 OR NOT CUDAToolkit_VERSION VERSION_LESS 14)
    set(lacuna_cuda_problem "found nvcc ${CUDAToolkit_VERSION}, but 12.4 to 13 is needed")
  else()
    if(NOT DEFINED CMAKE_CUDA_COMPILER)
      set(CMAKE_CUDA_COMPILER "${CUDAToolkit_NVCC_EXECUTABLE}" CACHE FILEPATH "nvcc")
    endif()
    if(NOT DEFINED CMAKE_CUDA_HOST_COMPILER)
      set(CMAKE_CUDA_HOST_COMPILER "${CMAKE_CXX_COMPILER}" CACHE FILEPATH "C++ compiler behind nvcc")
    endif()
    # Kernels for sm_80 (also 86, 89), for sm_90a, and PTX from which a driver makes those of anything newer.
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES "80-real;90a-real;90-virtual" CACHE STRING "GPU architectures")
    endif()
    if(NOT TARGET CUDA::cudart_static)
      set(lacuna_cuda_problem "found nvcc ${CUDAToolkit_VERSION}, but no libcudart_static.a beside it")
    elseif(NOT DEFINED LACUNA_NVCC_WORKS)  # tried once: enable_language() would stop instead of leaving the GPU out
      file(WRITE "${CMAKE_BINARY_DIR}/nvcc_works/probe.cu"
        "#include <concepts>\n#include <cublasLt.h>\n#include <cuda_bf16.h>\n__global__ void probe(std::integral auto* x) { *x = 1; }\n"
        "template __global__ void probe<int>(int*);\n")
      execute_process(
        COMMAND "${CMAKE_CUDA_COMPILER}" -std=c++20 -ccbin "${CMAKE_CUDA_HOST_COMPILER}" -arch=sm_80 -c probe.cu
        WORKING_DIRECTORY "${CMAKE_BINARY_DIR}/nvcc_works" RESULT_VARIABLE failed ERROR_VARIABLE output OUTPUT_QUIET)
      if(failed)
        string(REGEX REPLACE "\n.*" "" output "${output}")
        set(lacuna_cuda_problem "found nvcc ${CUDAToolkit_VERSION}, but it compiles nothing: ${output}")
      else()
        set(LACUNA_NVCC_WORKS ON CACHE INTERNAL "")
      endif()
    endif()
  endif()
endif()

if(LACUNA_CUDA STREQUAL "OFF")
  set(LACUNA_CUDA_REPORT "off: not looked for")
elseif(lacuna_cuda_problem)
  if(LACUNA_CUDA STREQUAL "ON")
    message(FATAL_ERROR "LACUNA_CUDA=ON: ${lacuna_cuda_problem}. Configure with -DLACUNA_CUDA=OFF for the CPU alone.")
  endif()
  set(LACUNA_CUDA_REPORT "${lacuna_cuda_problem}; CPU only")
  set(LACUNA_CUDA OFF)
else()
  if(LACUNA_CCACHE AND NOT DEFINED CMAKE_CUDA_COMPILER_LAUNCHER)
    set(CMAKE_CUDA_COMPILER_LAUNCHER "${LACUNA_CCACHE}")
  endif()
  enable_language(CUDA)
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc 12 has C++20
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  set(nvcc_flags -lineinfo -Xcompiler=-Wall -Xfatbin=-compress-all)
  if(LACUNA_WERROR)
    list(APPEND nvcc_flags -Werror=all-warnings)
  endif()
  target_compile_options(lacuna_flags INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:${nvcc_flags}>)
  add_library(lacuna_cuda INTERFACE)
  add_library(lacuna::cuda ALIAS lacuna_cuda)
  target_compile_definitions(lacuna_cuda INTERFACE LACUNA_HAS_CUDA=1)
  if("${CMAKE_CUDA_ARCHITECTURES}" MATCHES "90a(-real)?(;|$)")  # whose kernels are chosen when the program runs
    target_compile_definitions(lacuna_cuda INTERFACE LACUNA_SM90A=1)
  endif()
  target_include_directories(lacuna_cuda SYSTEM INTERFACE ${CUDAToolkit_INCLUDE_DIRS})
  target_link_libraries(lacuna_cuda INTERFACE CUDA::cudart_static ${CMAKE_DL_LIBS})
  # Programs look for libraries beside themselves first, and so do the libraries they load: scripts/gpu_bundle puts them
  # there. Only RPATH, not the newer RUNPATH, also holds for libraries of libraries.
  set(CMAKE_BUILD_RPATH "$ORIGIN/../lib")
  add_link_options(LINKER:--disable-new-dtags)
  list(JOIN CMAKE_CUDA_ARCHITECTURES ", " architectures)
  set(LACUNA_CUDA_REPORT "nvcc ${CUDAToolkit_VERSION} (${CMAKE_CUDA_COMPILER}) for ${architectures}")
  set(LACUNA_CUDA ON)
endif()

# lacuna_gpu_sources(<target> [AS_ONE] <file>...): what `target` gains with a GPU. The emulated tests compile the same files
# for the host, so they are kept in its property LACUNA_GPU_SOURCES in every build. With AS_ONE nvcc compiles all of them
# at once: most of the time that a small file takes goes to headers, three times over.
function(lacuna_gpu_sources target)
  cmake_parse_arguments(GPU "AS_ONE" "" "" ${ARGN})
  list(TRANSFORM GPU_UNPARSED_ARGUMENTS PREPEND "${CMAKE_CURRENT_SOURCE_DIR}/" OUTPUT_VARIABLE sources)
  set_property(TARGET ${target} APPEND PROPERTY LACUNA_GPU_SOURCES ${sources})
  if(NOT LACUNA_CUDA)
    return()
  endif()
  if(GPU_AS_ONE)
    list(TRANSFORM sources REPLACE "(.+)" "#include \"\\1\"\n" OUTPUT_VARIABLE includes)
    list(JOIN includes "" includes)
    set(sources "${CMAKE_CURRENT_BINARY_DIR}/${target}_kernels.cu")
    file(CONFIGURE OUTPUT "${sources}" CONTENT "${includes}" @ONLY)
  endif()
  target_sources(${target} PRIVATE ${sources})
endfunction()

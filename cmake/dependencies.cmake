# Libraries, all of them packages of Debian 12 and Ubuntu 24.04. What is missing is reported at once, with the command
# that installs it.
set(missing_packages "")
macro(lacuna_need debian_packages name)  # a macro, so that what find_package sets is seen below
  find_package(${name} ${ARGN} QUIET)
  if(NOT ${name}_FOUND)
    list(APPEND missing_packages ${debian_packages})
  endif()
endmacro()

lacuna_need(g++ OpenMP COMPONENTS CXX)
if(NOT OpenMP_FOUND AND CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  list(TRANSFORM missing_packages REPLACE "^g\\+\\+$" "libomp-dev")
endif()
lacuna_need(ocl-icd-opencl-dev OpenCL)        # unused, but Debian's oneDNN cannot be found without it
if(OpenCL_FOUND)
  lacuna_need(libdnnl-dev dnnl CONFIG)        # oneDNN: f32 matrix products
else()
  list(APPEND missing_packages libdnnl-dev)
endif()
lacuna_need(libhwy-dev hwy CONFIG)            # Highway: SIMD with run-time dispatch
lacuna_need(nlohmann-json3-dev nlohmann_json)
lacuna_need(libcli11-dev CLI11)
lacuna_need(libtomlplusplus-dev tomlplusplus)
lacuna_need(libfmt-dev fmt)
lacuna_need(libpng-dev PNG)
lacuna_need(zlib1g-dev ZLIB)
lacuna_need(libbz2-dev BZip2)
lacuna_need(libssl-dev OpenSSL COMPONENTS Crypto)
if(LACUNA_TESTS)
  lacuna_need(doctest-dev doctest)
  lacuna_need(librapidcheck-dev rapidcheck)
endif()
if(LACUNA_BENCHMARKS)
  lacuna_need(libbenchmark-dev benchmark)
endif()

if(missing_packages)
  list(REMOVE_DUPLICATES missing_packages)
  list(JOIN missing_packages " " packages)
  message(FATAL_ERROR "Libraries are missing. On Debian or Ubuntu:\n  sudo apt-get install ${packages}\n"
                      "Elsewhere install the same libraries, and name their place with -DCMAKE_PREFIX_PATH=... where "
                      "CMake does not look by itself. Tests and benchmarks are left out, with their libraries, by "
                      "-DLACUNA_TESTS=OFF -DLACUNA_BENCHMARKS=OFF.")
endif()

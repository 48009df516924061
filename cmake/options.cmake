# LACUNA_CUDA, LACUNA_MPI and LACUNA_NCCL each say what to do with one backend:
#   AUTO  use it when it is found (the default)
#   ON    use it, and stop when that is impossible
#   OFF   do not even look for it
# This version has no backend for MPI and NCCL yet: AUTO looks and reports, ON stops. After this file each variable is
# true exactly when its backend is built, and <option>_REPORT is its line in the report.
function(lacuna_backend_option option what)
  set(${option} AUTO CACHE STRING "${what}: AUTO, ON or OFF")
  set_property(CACHE ${option} PROPERTY STRINGS AUTO ON OFF)
  if(NOT ${option} MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "${option} must be AUTO, ON or OFF, got '${${option}}'")
  endif()
endfunction()

function(lacuna_backend option what)
  lacuna_backend_option(${option} ${what})
  if(${option} STREQUAL "ON")
    message(FATAL_ERROR "${option}=ON: this version of Lacuna has no ${what} backend yet. Configure with -D${option}=OFF, "
                        "or with AUTO, which reports whether ${what} is installed.")
  endif()
  set(report "off: not looked for")
  if(${option} STREQUAL "AUTO")
    set(CMAKE_MESSAGE_LOG_LEVEL NOTICE)  # what was found is in the report
    cmake_language(CALL lacuna_find_${what} found)
    set(report "not found, and not needed: this version has no ${what} backend yet")
    if(found)
      set(report "found (${found}), not used: this version has no ${what} backend yet")
    endif()
  endif()
  set(${option} OFF PARENT_SCOPE)
  set(${option}_REPORT "${report}" PARENT_SCOPE)
endfunction()

# Each sets `result` to what was found, or to nothing.
function(lacuna_find_MPI result)
  find_package(MPI QUIET COMPONENTS CXX)
  if(MPI_CXX_FOUND)
    set(${result} "MPI ${MPI_CXX_VERSION}" PARENT_SCOPE)
  endif()
endfunction()

function(lacuna_find_NCCL result)
  find_path(LACUNA_NCCL_INCLUDE nccl.h HINTS "$ENV{CUDA_HOME}/include" /usr/local/cuda/include)
  find_library(LACUNA_NCCL_LIBRARY nccl HINTS "$ENV{CUDA_HOME}/lib64" /usr/local/cuda/lib64)
  mark_as_advanced(LACUNA_NCCL_INCLUDE LACUNA_NCCL_LIBRARY)
  if(LACUNA_NCCL_INCLUDE AND LACUNA_NCCL_LIBRARY)
    file(STRINGS "${LACUNA_NCCL_INCLUDE}/nccl.h" lines REGEX "^#define NCCL_(MAJOR|MINOR|PATCH) [0-9]+")
    list(TRANSFORM lines REPLACE "^#define NCCL_[A-Z]+ ([0-9]+).*" "\\1")
    list(JOIN lines "." version)
    set(${result} "NCCL ${version}" PARENT_SCOPE)
  endif()
endfunction()

include(cmake/cuda.cmake)
lacuna_backend(LACUNA_MPI MPI)
lacuna_backend(LACUNA_NCCL NCCL)

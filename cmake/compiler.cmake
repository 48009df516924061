# Flags of every target, through lacuna::flags. Not -ffast-math: it breaks NaN handling and the rounding of the kernels.
# The two flags that are used change no result: we read neither errno nor the floating-point exception flags.
add_library(lacuna_flags INTERFACE)
add_library(lacuna::flags ALIAS lacuna_flags)
target_compile_options(lacuna_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-fno-math-errno;-fno-trapping-math>)  # nvcc's are in cuda.cmake

# Warnings are errors with the compilers that CI builds with; a newer compiler's new warning must not stop a user.
set(werror OFF)
if("${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}" MATCHES "^(GNU 12|Clang 14)\\.")
  set(werror ON)
endif()
option(LACUNA_WERROR "Warnings are errors" ${werror})
if(LACUNA_WERROR)
  target_compile_options(lacuna_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Release, RelWithDebInfo or Debug" FORCE)
endif()
add_compile_definitions($<$<CONFIG:Debug>:_GLIBCXX_ASSERTIONS>)  # checks operator[], front(), ... of std containers

set(LACUNA_SANITIZE "" CACHE STRING "Sanitizers, e.g. address,undefined")
if(LACUNA_SANITIZE)
  add_compile_options(
    "$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${LACUNA_SANITIZE};-fno-omit-frame-pointer;-fno-sanitize-recover=all>"
    # With clang, as with g++: no word of loops that do not vectorise when checked, nor of converted NaN (Highway does).
    "$<$<CXX_COMPILER_ID:Clang>:-Wno-pass-failed;-fno-sanitize=float-cast-overflow>")
  add_link_options(-fsanitize=${LACUNA_SANITIZE})
endif()

find_program(LACUNA_CCACHE ccache)
mark_as_advanced(LACUNA_CCACHE)
if(LACUNA_CCACHE AND NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${LACUNA_CCACHE}")
endif()

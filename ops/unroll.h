#pragma once
// LACUNA_UNROLL before a loop of known length: the compiler unrolls it, so that an array of vectors stays in registers.

#ifdef __clang__
#define LACUNA_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LACUNA_UNROLL _Pragma("GCC unroll 16")
#endif

#pragma once
// Entry points of the sanitizers' runtimes. They are weak, so that one build of the emulator, itself not instrumented,
// serves the plain and the sanitized builds of the kernels. (ThreadSanitizer's shadow of the call stack does not survive
// a switch of fibers in instrumented code.)

#include <cstddef>

extern "C" {
[[gnu::weak]] void __asan_poison_memory_region(const volatile void* address, size_t size);
[[gnu::weak]] void* __asan_region_is_poisoned(void* begin, size_t size);
[[gnu::weak]] void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
[[gnu::weak]] void __sanitizer_finish_switch_fiber(void* fake_stack, const void** old_bottom, size_t* old_size);

[[gnu::weak]] void* __tsan_get_current_fiber();
[[gnu::weak]] void* __tsan_create_fiber(unsigned flags);
[[gnu::weak]] void __tsan_destroy_fiber(void* fiber);
[[gnu::weak]] void __tsan_set_fiber_name(void* fiber, const char* name);
[[gnu::weak]] void __tsan_switch_to_fiber(void* fiber, unsigned flags);
[[gnu::weak]] void __tsan_acquire(void* address);
[[gnu::weak]] void __tsan_release(void* address);
[[gnu::weak]] void __tsan_read_range(void* address, size_t size);
[[gnu::weak]] void __tsan_write_range(void* address, size_t size);
[[gnu::weak]] void AnnotateIgnoreReadsBegin(const char* file, int line);
[[gnu::weak]] void AnnotateIgnoreReadsEnd(const char* file, int line);
}

namespace lacuna::emulation {

inline bool under_tsan() { return __tsan_create_fiber != nullptr; }
inline bool under_asan() { return __asan_poison_memory_region != nullptr; }

/// What happened before release(object) happened before what follows a later acquire(object). Only the address counts.
inline void release(void* object) {
  if (__tsan_release) __tsan_release(object);
}
inline void acquire(void* object) {
  if (__tsan_acquire) __tsan_acquire(object);
}

/// While one exists ThreadSanitizer disregards the accesses of this fiber: they are the emulator's bookkeeping.
struct Unobserved {
  Unobserved() {
    if (AnnotateIgnoreReadsBegin) AnnotateIgnoreReadsBegin("", 0);  // covers writes too
  }
  ~Unobserved() {
    if (AnnotateIgnoreReadsEnd) AnnotateIgnoreReadsEnd("", 0);
  }
  Unobserved(const Unobserved&) = delete;
};

}  // namespace lacuna::emulation

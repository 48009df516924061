// Any bytes, taken for a safetensors file, are read or refused with Error; what is read tiles the file exactly.

#include <cstdint>
#include <cstdlib>

#include "core/archive_header.h"
#include "core/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const lacuna::ArchiveHeader header =
        lacuna::parse_archive_header("fuzz", {reinterpret_cast<const char*>(data), size});
    int64_t end = header.data_begin;
    for (const auto& [name, entry] : header.entries) {
      if (entry.begin < 0 || entry.end < entry.begin || entry.shape.numel() < 0) std::abort();
      end += entry.end - entry.begin;
    }
    if (end != static_cast<int64_t>(size)) std::abort();
  } catch (const lacuna::Error&) {
  }
  return 0;
}

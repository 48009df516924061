#pragma once
// The header of a safetensors file, between bytes and what they say. Archive and write_archive own the files.
//
//   8 bytes   N, little-endian
//   N bytes   JSON: {"__metadata__": {string: string}, name: {"dtype", "shape", "data_offsets": [begin, end)}, ...}
//   the rest  the tensors, little-endian and row-major, without gaps

#include <iosfwd>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/archive.h"

namespace lacuna {

struct ArchiveHeader {
  Metadata metadata;
  std::map<std::string, Archive::Entry> entries;
  int64_t data_begin = 0;  // bytes from the beginning of the file to the first tensor
};

/// Reads and checks the header of the file whose content is `bytes`; `file` is what errors call it. Every rule that
/// Archive promises is checked here, so entries can be used without another look.
ArchiveHeader parse_archive_header(const std::string& file, std::string_view bytes);

/// The first bytes of a file that holds `tensors` in this order, padded with spaces to a multiple of 64.
std::string compose_archive_header(const std::string& file, const std::vector<NamedTensor>& tensors,
                                   const Metadata& metadata);

/// Whether the reference writer stores `a` before `b`: alignment of the dtype descending, then name.
bool is_stored_before(const NamedTensor& a, const NamedTensor& b);

/// The dtype that the format calls `name`, if Tensor has it.
std::optional<DType> dtype_from_archive(std::string_view name);

/// Prints `text` in quotes, fit for a message: control characters and bytes beyond ASCII escaped, long text cut.
struct Quoted {
  std::string_view text;
  friend std::ostream& operator<<(std::ostream& out, const Quoted& quoted);
};

/// Prints how a message about one tensor of a file begins.
struct AboutTensor {
  std::string_view file, name;
  friend std::ostream& operator<<(std::ostream& out, const AboutTensor& about);
};

}  // namespace lacuna

#pragma once
// Named tensors on disk, in the safetensors format.

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"

namespace lacuna {

class MappedFile;

using Metadata = std::map<std::string, std::string>;

/// A tensor and its name.
struct NamedTensor {
  std::string name;
  Tensor tensor;
};

/// Writes tensors as one safetensors file, which appears under `path` complete or not at all: a temporary file in the
/// same folder is written, fsynced and renamed, and the folder fsynced. Tensors are stored in the order of the
/// reference writer (alignment of the dtype descending, then name), data beginning at a multiple of 64 bytes.
/// Throws Error that names the file (and for a full disk says so) or the tensor: duplicate or invalid name,
/// header over the format's limit.
void write_archive(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors,
                   const Metadata& metadata = {});

/// A safetensors file, memory-mapped and checked in full before anything of it is used. Every rule of the format is
/// enforced: header length and limits, strict JSON without duplicate keys, known dtypes, shapes that neither
/// overflow nor disagree with their bytes, tensors that tile the data exactly, string metadata.
/// Throws Error that names the file, the tensor or byte, what was expected and what was found.
class Archive {
 public:
  struct Entry {
    std::string dtype;  // as in the file: F32, BF16, ...
    Shape shape;
    int64_t begin = 0, end = 0;  // bytes in the data part
  };

  explicit Archive(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  const Metadata& metadata() const { return metadata_; }
  const std::map<std::string, Entry>& entries() const { return entries_; }
  bool contains(const std::string& name) const { return entries_.contains(name); }

  /// A copy of a tensor, on the CPU. Throws Error for a missing name, or a dtype that Tensor does not have.
  Tensor read(const std::string& name) const;

  /// Reads into an existing tensor, converting floating dtypes. Throws Error when the shape differs.
  void read_into(const std::string& name, const Tensor& target) const;

 private:
  std::pair<const Entry*, DType> find(const std::string& name) const;
  void copy_data(const Entry& entry, const Tensor& target) const;

  std::filesystem::path path_;
  std::shared_ptr<const MappedFile> file_;
  Metadata metadata_;
  std::map<std::string, Entry> entries_;
  int64_t data_begin_ = 0;
};

}  // namespace lacuna

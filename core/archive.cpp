#include "core/archive.h"

#include <algorithm>
#include <cstring>

#include "core/archive_header.h"
#include "core/error.h"
#include "core/file.h"

namespace lacuna {

void write_archive(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors,
                   const Metadata& metadata) {
  std::vector<NamedTensor> order = tensors;  // handles, not elements
  std::sort(order.begin(), order.end(), is_stored_before);
  const std::string header = compose_archive_header(path.string(), order, metadata);

  AtomicFile file(path);
  file.write(header);
  for (const auto& [name, tensor] : order) {
    const Tensor host = to_device(tensor, kCpu);
    file.write(host.raw(), host.bytes());
  }
  file.commit();
}

Archive::Archive(const std::filesystem::path& path) : path_(path), file_(std::make_shared<MappedFile>(path)) {
  ArchiveHeader header = parse_archive_header(path.string(), file_->bytes());
  metadata_ = std::move(header.metadata);
  entries_ = std::move(header.entries);
  data_begin_ = header.data_begin;
}

Tensor Archive::read(const std::string& name) const {
  const auto [entry, dtype] = find(name);
  const Tensor tensor = empty(entry->shape, dtype);
  copy_data(*entry, tensor);
  return tensor;
}

void Archive::read_into(const std::string& name, const Tensor& target) const {
  const auto [entry, dtype] = find(name);
  check(entry->shape == target.shape(), AboutTensor{path_.string(), name}, "must have shape ", target.shape(), ", has ",
        entry->shape);
  if (dtype == target.dtype() && target.device() == kCpu) {
    copy_data(*entry, target);
    return;
  }
  check(dtype == target.dtype() || (is_floating(dtype) && is_floating(target.dtype())),
        AboutTensor{path_.string(), name}, "must have a dtype that converts to ", target.dtype(), ", has ",
        entry->dtype);
  const MemoryScope scope(MemoryCategory::workspace);
  copy(read(name), target);
}

std::pair<const Archive::Entry*, DType> Archive::find(const std::string& name) const {
  const auto found = entries_.find(name);
  check(found != entries_.end(), path_.string(), ": must hold a tensor ", Quoted{name}, ", which is not among its ",
        entries_.size());
  const std::optional<DType> dtype = dtype_from_archive(found->second.dtype);
  check(dtype.has_value(), AboutTensor{path_.string(), name},
        "dtype must be one of F64, F32, BF16, F16, I64, I32, U8 to be read, is ", found->second.dtype);
  return {&found->second, *dtype};
}

void Archive::copy_data(const Entry& entry, const Tensor& target) const {
  std::memcpy(target.raw(), file_->bytes().data() + data_begin_ + entry.begin, static_cast<size_t>(target.bytes()));
}

}  // namespace lacuna

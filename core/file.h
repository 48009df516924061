#pragma once
// Files that are read whole or appear whole.

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace lacuna {

/// A file mapped read-only into memory. Throws Error that names the file when it is missing, unreadable or not a
/// regular file.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::string_view bytes() const { return {data_, static_cast<size_t>(size_)}; }
  int64_t size() const { return size_; }

 private:
  const char* data_ = nullptr;
  int64_t size_ = 0;
};

/// A file being written beside its final name, under which it appears only by commit(): flushed, fsynced, renamed,
/// folder fsynced. Destroyed without commit() it leaves nothing. A link to a file stays, the file is replaced; a device,
/// pipe or socket is refused. All functions throw Error that names the file and the system's reason ("No space left on
/// device").
class AtomicFile {
 public:
  explicit AtomicFile(const std::filesystem::path& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, int64_t bytes);
  void write(std::string_view text) { write(text.data(), static_cast<int64_t>(text.size())); }
  void commit();

 private:
  void discard() noexcept;
  [[noreturn]] void fail_and_discard(const char* action, int error);

  std::filesystem::path path_, temporary_;
  int fd_ = -1;
};

/// Writes a whole file through AtomicFile.
void write_file(const std::filesystem::path& path, std::string_view content);

/// Reads a whole file.
std::string read_file(const std::filesystem::path& path);

/// Flushes a folder's entries to disk.
void sync_folder(const std::filesystem::path& folder);

/// Lower-case hexadecimal digests (OpenSSL).
std::string sha256(std::string_view bytes);
std::string md5(std::string_view bytes);

}  // namespace lacuna

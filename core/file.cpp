#include "core/file.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <system_error>

#include "core/error.h"

namespace lacuna {
namespace {

/// Throws Error: `path: cannot <action>: <the system's reason>`.
[[noreturn]] void fail_with_errno(const std::filesystem::path& path, const char* action, int error) {
  fail(path.string(), ": cannot ", action, ": ", std::generic_category().message(error));
}

/// A file descriptor that closes itself.
class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, int flags, const char* action)
      : fd_(::open(path.c_str(), flags | O_CLOEXEC)) {
    if (fd_ < 0) fail_with_errno(path, action, errno);
  }
  ~Descriptor() { ::close(fd_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

std::string hex_digest(std::string_view bytes, const EVP_MD* algorithm, const char* name) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int size = 0;
  check(EVP_Digest(bytes.data(), bytes.size(), digest.data(), &size, algorithm, nullptr) == 1, name,
        ": OpenSSL refuses to compute this digest");
  std::string hex;
  for (unsigned int i = 0; i < size; ++i) {
    hex += "0123456789abcdef"[digest[i] >> 4];
    hex += "0123456789abcdef"[digest[i] & 15];
  }
  return hex;
}

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) {
  const Descriptor file(path, O_RDONLY | O_NONBLOCK, "open for reading");  // a FIFO must not block the open
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) fail_with_errno(path, "read its size", errno);
  check(S_ISREG(info.st_mode), path.string(), ": must be a regular file, is ",
        S_ISDIR(info.st_mode) ? "a folder" : "a device, pipe or socket");
  if (info.st_size == 0) return;  // nothing to map, and mmap refuses empty ranges
  void* const data = ::mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (data == MAP_FAILED) fail_with_errno(path, "map into memory", errno);
  data_ = static_cast<const char*>(data);
  size_ = info.st_size;
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<char*>(data_), static_cast<size_t>(size_));
}

AtomicFile::AtomicFile(const std::filesystem::path& path) : path_(path) {
  check(path.has_filename(), "AtomicFile: needs the name of a file, got '", path.string(), "'");
  std::error_code none;  // what cannot be looked at cannot be created either, and that says why
  const std::filesystem::file_status status = std::filesystem::status(path, none);
  check(!std::filesystem::is_directory(status), path.string(), ": must be a regular file, is a folder");
  check(!std::filesystem::is_other(status), path.string(), ": must be a regular file, is a device, pipe or socket");
  if (std::filesystem::is_regular_file(status)) path_ = std::filesystem::canonical(path);  // the rename follows no link
  static std::atomic<int64_t> count{0};  // two writers of one process never share a temporary file
  temporary_ = folder_of(path_) / concat('.', path_.filename().string(), '.', ::getpid(), '.', count++, ".tmp");
  const auto open_new = [&] { return ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666); };
  fd_ = open_new();
  if (fd_ < 0 && errno == EEXIST) {  // left by a killed process of this id: in a container ids come again
    ::unlink(temporary_.c_str());
    fd_ = open_new();
  }
  if (fd_ < 0) fail_with_errno(path_, "create", errno);
}

AtomicFile::~AtomicFile() { discard(); }

void AtomicFile::discard() noexcept {
  if (fd_ < 0) return;
  ::close(fd_);
  fd_ = -1;
  ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, int64_t bytes) {
  check(fd_ >= 0, path_.string(), ": cannot write after commit or failure");
  constexpr int64_t kLargest = int64_t{1} << 30;  // a single write() takes less than 2 GiB
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::write(fd_, next, static_cast<size_t>(std::min(bytes, kLargest)));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_and_discard("write", errno);
    next += written;
    bytes -= written;
  }
}

void AtomicFile::commit() {
  check(fd_ >= 0, path_.string(), ": cannot commit after commit or failure");
  // After a failed fsync the kernel may have dropped the pages: trying again would report success over lost data.
  if (::fsync(fd_) != 0) fail_and_discard("flush to disk", errno);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail_and_discard("rename into place", errno);
  const int fd = fd_;
  fd_ = -1;  // from here on the file is in its place
  if (::close(fd) != 0 && errno != EINTR) fail_with_errno(path_, "close", errno);
  sync_folder(folder_of(path_));
}

void AtomicFile::fail_and_discard(const char* action, int error) {
  discard();
  fail_with_errno(path_, action, error);
}

void write_file(const std::filesystem::path& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content);
  file.commit();
}

std::string read_file(const std::filesystem::path& path) {
  const Descriptor file(path, O_RDONLY, "open for reading");
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) fail_with_errno(path, "read its size", errno);
  std::string content(static_cast<size_t>(info.st_size) + 1, '\0');  // one more byte, to see the end
  size_t filled = 0;
  while (true) {
    const ssize_t got = ::read(file.get(), content.data() + filled, content.size() - filled);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_with_errno(path, "read", errno);
    if (got == 0) break;
    filled += static_cast<size_t>(got);
    if (filled == content.size()) content.resize(std::max<size_t>(2 * filled, 4096));  // it grows, or is a pipe
  }
  content.resize(filled);
  return content;
}

void sync_folder(const std::filesystem::path& folder) {
  const Descriptor descriptor(folder, O_RDONLY | O_DIRECTORY, "open the folder");
  // EINVAL: the file system has no such operation, and nothing more can be done.
  if (::fsync(descriptor.get()) != 0 && errno != EINVAL) fail_with_errno(folder, "flush the folder to disk", errno);
}

std::string sha256(std::string_view bytes) { return hex_digest(bytes, EVP_sha256(), "sha256"); }
std::string md5(std::string_view bytes) { return hex_digest(bytes, EVP_md5(), "md5"); }

}  // namespace lacuna

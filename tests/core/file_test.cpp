#include "core/file.h"

#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>

#include "core/error.h"
#include "tests/support/expect_error.h"
#include "tests/support/temporary_folder.h"

using namespace lacuna;
namespace fs = std::filesystem;

namespace {

/// While alive, this process cannot write files beyond `bytes`: what a full disk is to a program.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &previous_);
    const rlimit limit{bytes, previous_.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &previous_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  void (*handler_)(int);
  rlimit previous_{};
};

}  // namespace

TEST_CASE("AtomicFile: the file appears at commit, complete, and replaces what was there") {
  const TemporaryFolder folder;
  const fs::path path = folder.write("state", "old");
  AtomicFile file(path);
  file.write("new ");
  file.write("content");
  file.write("");
  CHECK(read_file(path) == "old");
  CHECK(folder.count() == 2);
  file.commit();
  CHECK(read_file(path) == "new content");
  CHECK(folder.count() == 1);
  expect_error("cannot write after commit", [&] { file.write("x"); });
  expect_error("cannot commit after commit", [&] { file.commit(); });
}

TEST_CASE("AtomicFile: without commit it leaves nothing") {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "state";
  {
    AtomicFile file(path);
    file.write("half of it");
    CHECK(folder.count() == 1);
    CHECK_FALSE(fs::exists(path));
  }
  CHECK(folder.count() == 0);
}

TEST_CASE("AtomicFile: two writers of one path do not disturb each other") {
  const TemporaryFolder folder;
  AtomicFile first(folder.path() / "state"), second(folder.path() / "state");
  first.write("first");
  second.write("second");
  first.commit();
  CHECK(read_file(folder.path() / "state") == "first");
  second.commit();
  CHECK(read_file(folder.path() / "state") == "second");
  CHECK(folder.count() == 1);
}

TEST_CASE("AtomicFile: temporary files that a killed process left are no obstacle") {
  const TemporaryFolder folder;
  for (int k = 0; k < 1000; ++k) folder.write(concat(".state.", ::getpid(), '.', k, ".tmp"), "torn");
  write_file(folder.path() / "state", "whole");
  CHECK(read_file(folder.path() / "state") == "whole");
}

TEST_CASE("AtomicFile: a disk that takes no more leaves the old file, no temporary one, and says why") {
  const TemporaryFolder folder;
  const fs::path path = folder.write("state", "old");
  const std::string large(100'000, 'x');
  {
    const FileSizeLimit limit(4096);
    expect_error(path.string() + ": cannot write: File too large", [&] { write_file(path, large); });
  }
  CHECK(read_file(path) == "old");
  CHECK(folder.count() == 1);
  write_file(path, large);
  CHECK(read_file(path) == large);
}

TEST_CASE("AtomicFile: after a failed write nothing more is tried") {
  const TemporaryFolder folder;
  const FileSizeLimit limit(10);
  AtomicFile file(folder.path() / "state");
  expect_error("File too large", [&] { file.write("more than ten bytes"); });
  CHECK(folder.count() == 0);
  expect_error("cannot write after commit or failure", [&] { file.write("x"); });
  expect_error("cannot commit after commit or failure", [&] { file.commit(); });
}

TEST_CASE("AtomicFile: places where no file can be") {
  const TemporaryFolder folder;
  const fs::path file = folder.write("file", "x");
  fs::create_directory(folder.path() / "folder");
  expect_error("missing/state: cannot create: No such file or directory",
               [&] { write_file(folder.path() / "missing" / "state", "x"); });
  expect_error("file/state: cannot create: Not a directory", [&] { write_file(file / "state", "x"); });
  expect_error("folder: must be a regular file, is a folder", [&] { write_file(folder.path() / "folder", "x"); });
  expect_error("needs the name of a file, got ''", [] { AtomicFile{fs::path()}; });
  CHECK(folder.count() == 2);
}

TEST_CASE("AtomicFile: a device or pipe is refused, not replaced; a link is followed") {
  const TemporaryFolder folder, other;
  const fs::path pipe = folder.path() / "pipe", link = folder.path() / "link", loose = folder.path() / "loose";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  expect_error("pipe: must be a regular file, is a device, pipe or socket", [&] { write_file(pipe, "x"); });
  CHECK(fs::is_fifo(pipe));
  fs::create_symlink(pipe, loose);  // as /dev/stdout is one
  expect_error("loose: must be a regular file, is a device, pipe or socket", [&] { write_file(loose, "x"); });
  CHECK(fs::is_symlink(loose));

  const fs::path file = other.write("file", "old");
  fs::create_symlink(file, link);
  write_file(link, "new");
  CHECK(fs::is_symlink(link));
  CHECK(read_file(file) == "new");
  CHECK(folder.count() == 3);
  CHECK(other.count() == 1);
}

TEST_CASE("write_file: a name without a folder is in the current one") {
  const TemporaryFolder folder;
  const fs::path previous = fs::current_path();
  fs::current_path(folder.path());
  write_file("here", "x");
  fs::current_path(previous);
  CHECK(read_file(folder.path() / "here") == "x");
}

TEST_CASE("read_file: whole files, empty ones, and files that do not know their size") {
  const TemporaryFolder folder;
  std::string binary;
  for (int i = 0; i < 70'000; ++i) binary += static_cast<char>(i * 7);
  CHECK(read_file(folder.write("binary", binary)) == binary);
  CHECK(read_file(folder.write("empty", "")) == "");
  CHECK(read_file("/proc/self/cmdline").size() > 0);
  expect_error("nothing: cannot open for reading: No such file or directory",
               [&] { read_file(folder.path() / "nothing"); });
  expect_error(": cannot read: Is a directory", [&] { read_file(folder.path()); });
}

TEST_CASE("MappedFile: the bytes of regular files, empty ones too, and of nothing else") {
  const TemporaryFolder folder;
  const MappedFile file(folder.write("file", std::string("a\0b", 3)));
  CHECK(file.size() == 3);
  CHECK(file.bytes() == std::string_view("a\0b", 3));
  const MappedFile empty(folder.write("empty", ""));
  CHECK(empty.size() == 0);
  CHECK(empty.bytes().empty());

  expect_error("nothing: cannot open for reading: No such file or directory",
               [&] { MappedFile(folder.path() / "nothing"); });
  expect_error("must be a regular file, is a folder", [&] { MappedFile{folder.path()}; });
  const fs::path pipe = folder.path() / "pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  expect_error("must be a regular file, is a device, pipe or socket", [&] { MappedFile{pipe}; });
}

TEST_CASE("sync_folder: folders only") {
  const TemporaryFolder folder;
  CHECK_NOTHROW(sync_folder(folder.path()));
  expect_error("cannot open the folder", [&] { sync_folder(folder.write("file", "x")); });
}

TEST_CASE("sha256 and md5: known answers") {
  CHECK(sha256("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(md5("") == "d41d8cd98f00b204e9800998ecf8427e");
  CHECK(md5("abc") == "900150983cd24fb0d6963f7d28e17f72");
}

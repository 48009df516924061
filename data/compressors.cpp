#include "data/compressors.h"

#include <bzlib.h>
#include <zlib.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/error.h"

namespace lacuna {
namespace {

constexpr size_t kChunk = size_t{1} << 20;  // the libraries count input in 32 bits; the output is only counted

struct Deflater {
  z_stream stream{};
  Deflater() {
    constexpr int kWindowBits = 15, kGzipWrapper = 16, kMemoryLevel = 9;  // the gzip program's window and buffers
    check(deflateInit2(&stream, 9, Z_DEFLATED, kWindowBits + kGzipWrapper, kMemoryLevel, Z_DEFAULT_STRATEGY) == Z_OK,
          "gzip_bits_per_byte: zlib could not start");
  }
  ~Deflater() { deflateEnd(&stream); }
};

struct Bzipper {
  bz_stream stream{};
  Bzipper() {
    check(BZ2_bzCompressInit(&stream, /*blockSize100k=*/9, /*verbosity=*/0, /*workFactor=*/0) == BZ_OK,
          "bzip2_bits_per_byte: libbz2 could not start");
  }
  ~Bzipper() { BZ2_bzCompressEnd(&stream); }
};

}  // namespace

double gzip_bits_per_byte(std::string_view bytes) {
  check(!bytes.empty(), "gzip_bits_per_byte: needs at least one byte");
  Deflater deflater;
  z_stream& stream = deflater.stream;
  std::vector<Bytef> output(kChunk);
  uint64_t compressed = 0;
  for (size_t done = 0; done < bytes.size();) {
    const size_t n = std::min(kChunk, bytes.size() - done);
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data() + done));
    stream.avail_in = static_cast<uInt>(n);
    done += n;
    const int flush = done == bytes.size() ? Z_FINISH : Z_NO_FLUSH;
    do {
      stream.next_out = output.data();
      stream.avail_out = static_cast<uInt>(output.size());
      check(deflate(&stream, flush) != Z_STREAM_ERROR, "gzip_bits_per_byte: zlib failed");
      compressed += output.size() - stream.avail_out;
    } while (stream.avail_out == 0);
  }
  return 8.0 * static_cast<double>(compressed) / static_cast<double>(bytes.size());
}

double bzip2_bits_per_byte(std::string_view bytes) {
  check(!bytes.empty(), "bzip2_bits_per_byte: needs at least one byte");
  Bzipper bzipper;
  bz_stream& stream = bzipper.stream;
  std::vector<char> output(kChunk);
  uint64_t compressed = 0;
  const auto run = [&](int action) {
    stream.next_out = output.data();
    stream.avail_out = static_cast<unsigned>(output.size());
    const int status = BZ2_bzCompress(&stream, action);
    check(status > 0, "bzip2_bits_per_byte: libbz2 failed with status ", status);
    compressed += output.size() - stream.avail_out;
    return status;
  };
  for (size_t done = 0; done < bytes.size();) {
    const size_t n = std::min(kChunk, bytes.size() - done);
    stream.next_in = const_cast<char*>(bytes.data() + done);
    stream.avail_in = static_cast<unsigned>(n);
    while (stream.avail_in > 0) run(BZ_RUN);
    done += n;
  }
  while (run(BZ_FINISH) != BZ_STREAM_END) {
  }
  return 8.0 * static_cast<double>(compressed) / static_cast<double>(bytes.size());
}

}  // namespace lacuna

#include "experiments/png.h"

#include <png.h>

#include "core/error.h"

namespace lacuna {

std::string encode_png(const std::vector<uint8_t>& rgb, int64_t width, int64_t height) {
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  png.width = static_cast<png_uint_32>(width);
  png.height = static_cast<png_uint_32>(height);
  png.format = PNG_FORMAT_RGB;
  png_alloc_size_t size = 0;
  std::string file;
  bool written = png_image_write_get_memory_size(png, size, 0, rgb.data(), 0, nullptr) != 0;
  if (written) {
    file.resize(size);
    written = png_image_write_to_memory(&png, file.data(), &size, 0, rgb.data(), 0, nullptr) != 0;
  }
  check(written, "PNG encoding failed: ", png.message);
  file.resize(size);
  return file;
}

}  // namespace lacuna

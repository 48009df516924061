#include "experiments/samples.h"

#include <png.h>

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "core/file.h"
#include "experiments/png.h"

namespace lacuna {
namespace {

constexpr int64_t kSide = 32, kChannels = 3, kImageBytes = kSide * kSide * kChannels;
constexpr int64_t kGap = 2;  // pixels between images

std::string png_grid(const Tensor& tokens) {
  const int64_t count = tokens.dim(0), length = tokens.dim(1);
  check(length <= kImageBytes, "samples: an image has ", kImageBytes, " bytes, got ", length);
  int64_t columns = 1;
  while (columns * columns < count) ++columns;
  const int64_t rows = (count + columns - 1) / columns;
  const int64_t width = columns * (kSide + kGap) - kGap, height = rows * (kSide + kGap) - kGap;
  std::vector<uint8_t> pixels(static_cast<size_t>(width * height * kChannels), 0);
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t* image = tokens.data<uint8_t>() + i * length;
    const int64_t top = i / columns * (kSide + kGap), left = i % columns * (kSide + kGap);
    for (int64_t y = 0; y < kSide; ++y) {
      const int64_t begin = y * kSide * kChannels;
      const int64_t bytes = std::clamp<int64_t>(length - begin, 0, kSide * kChannels);
      if (bytes > 0)
        std::memcpy(pixels.data() + ((top + y) * width + left) * kChannels, image + begin, static_cast<size_t>(bytes));
    }
  }
  return encode_png(pixels, width, height);
}

std::string text_of(const Tensor& tokens) {
  std::string text;
  const int64_t length = tokens.dim(1);
  for (int64_t i = 0; i < tokens.dim(0); ++i) {
    text += concat("----- sample ", i, " -----\n");
    text.append(reinterpret_cast<const char*>(tokens.data<uint8_t>() + i * length), static_cast<size_t>(length));
    text += "\n";
  }
  return text;
}

Tensor upper_half_of_png(const std::string& path) {
  std::string file;
  try {
    file = read_file(path);
  } catch (const Error& error) {
    throw UsageError(concat("--prompt ", error.what()));
  }
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  check_usage(png_image_begin_read_from_memory(&png, file.data(), file.size()) != 0, "--prompt ", path,
              ": is no PNG image: ", png.message);
  const bool fits = png.width == kSide && png.height == kSide;
  const auto width = png.width, height = png.height;
  if (!fits) png_image_free(&png);
  check_usage(fits, "--prompt ", path, ": must be ", kSide, " x ", kSide, " pixels, is ", width, " x ", height);
  png.format = PNG_FORMAT_RGB;
  std::vector<uint8_t> pixels(kImageBytes);
  const png_color black{0, 0, 0};  // behind what is transparent
  check_usage(png_image_finish_read(&png, &black, pixels.data(), 0, nullptr) != 0, "--prompt ", path,
              ": cannot be decoded: ", png.message);
  pixels.resize(kImageBytes / 2);
  return from_vector(pixels, {kImageBytes / 2});
}

// Length of the valid UTF-8 sequence at the start of `s`, or 0.
size_t utf8_length(std::string_view s) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(s[i]); };
  const unsigned char first = byte(0);
  const size_t length = first < 0x80                    ? 1
                        : first >= 0xc2 && first < 0xe0 ? 2
                        : (first & 0xf0) == 0xe0        ? 3
                        : first >= 0xf0 && first < 0xf5 ? 4
                                                        : 0;
  if (length == 0 || length > s.size()) return 0;
  for (size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xc0) != 0x80) return 0;
  if (first == 0xe0 && byte(1) < 0xa0) return 0;   // overlong
  if (first == 0xed && byte(1) >= 0xa0) return 0;  // surrogate
  if (first == 0xf0 && byte(1) < 0x90) return 0;   // overlong
  if (first == 0xf4 && byte(1) >= 0x90) return 0;  // beyond U+10FFFF
  if (first == 0xc2 && byte(1) < 0xa0) return 0;   // control characters
  return length;
}

}  // namespace

void write_samples(const std::filesystem::path& path, const Tensor& tokens, Medium medium) {
  write_file(path, medium == Medium::image ? png_grid(tokens) : text_of(tokens));
}

std::string sample_extension(Medium medium) { return medium == Medium::image ? ".png" : ".txt"; }

Tensor read_prompt(const std::string& prompt, Medium medium) {
  if (prompt.empty()) return {};
  if (medium == Medium::image) return upper_half_of_png(prompt);
  return from_vector(std::vector<uint8_t>(prompt.begin(), prompt.end()), {static_cast<int64_t>(prompt.size())});
}

std::string printable(std::string_view bytes) {
  std::string out;
  while (!bytes.empty()) {
    const size_t length = utf8_length(bytes);
    const auto first = static_cast<unsigned char>(bytes.front());
    const bool control = (first < 0x20 && first != '\n') || first == 0x7f;
    out += length == 0 || control ? std::string("\u00b7") : std::string(bytes.substr(0, length));
    bytes.remove_prefix(std::max<size_t>(length, 1));
  }
  return out;
}

}  // namespace lacuna

#include "experiments/samples.h"

#include <png.h>

#include "core/file.h"
#include "tests/support/expect_error.h"
#include "tests/support/temporary_folder.h"

namespace lacuna {
namespace {

Tensor ramp(int64_t count, int64_t length) {
  std::vector<uint8_t> bytes(static_cast<size_t>(count * length));
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 7 + i / 3072);
  return from_vector(bytes, {count, length});
}

TEST_CASE("samples: texts, one after the other") {
  const TemporaryFolder folder;
  const Tensor tokens = from_vector(std::vector<uint8_t>{'a', 'b', 'c', 'd'}, {2, 2});
  write_samples(folder.path() / "s.txt", tokens, Medium::text);
  CHECK(read_file(folder.path() / "s.txt") == "----- sample 0 -----\nab\n----- sample 1 -----\ncd\n");
}

TEST_CASE("samples: a PNG grid has the pixels of the images in place") {
  const TemporaryFolder folder;
  const Tensor tokens = ramp(3, 3072);
  const std::filesystem::path path = folder.path() / "s.png";
  write_samples(path, tokens, Medium::image);

  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  REQUIRE(png_image_begin_read_from_file(&png, path.c_str()));
  CHECK(png.width == 66);
  CHECK(png.height == 66);
  png.format = PNG_FORMAT_RGB;
  std::vector<uint8_t> pixels(PNG_IMAGE_SIZE(png));
  REQUIRE(png_image_finish_read(&png, nullptr, pixels.data(), 0, nullptr));
  const auto pixel = [&](int64_t y, int64_t x, int64_t c) { return pixels[static_cast<size_t>((y * 66 + x) * 3 + c)]; };
  const auto sampled = [&](int64_t i, int64_t y, int64_t x, int64_t c) {
    return tokens.data<uint8_t>()[i * 3072 + (y * 32 + x) * 3 + c];
  };
  CHECK(pixel(5, 6, 1) == sampled(0, 5, 6, 1));
  CHECK(pixel(31, 34 + 31, 2) == sampled(1, 31, 31, 2));
  CHECK(pixel(34, 0, 0) == sampled(2, 0, 0, 0));
  CHECK(pixel(33, 0, 0) == 0);   // between images
  CHECK(pixel(50, 50, 0) == 0);  // no fourth image
}

TEST_CASE("prompt: a text's bytes, the upper half of an image") {
  CHECK_FALSE(read_prompt("", Medium::text).defined());
  CHECK(to_vector<uint8_t>(read_prompt("hi", Medium::text)) == std::vector<uint8_t>{'h', 'i'});

  const TemporaryFolder folder;
  const Tensor image = ramp(1, 3072);
  write_samples(folder.path() / "one.png", image, Medium::image);
  const Tensor half = read_prompt((folder.path() / "one.png").string(), Medium::image);
  CHECK(to_vector<uint8_t>(half) == std::vector<uint8_t>(image.data<uint8_t>(), image.data<uint8_t>() + 1536));

  write_samples(folder.path() / "four.png", ramp(4, 3072), Medium::image);
  expect_error<UsageError>("must be 32 x 32 pixels, is 66 x 66",
                           [&] { read_prompt((folder.path() / "four.png").string(), Medium::image); });
  expect_error<UsageError>("is no PNG image",
                           [&] { read_prompt(folder.write("x.png", "text").string(), Medium::image); });
  expect_error<UsageError>("--prompt", [] { read_prompt("/nonexistent.png", Medium::image); });
}

TEST_CASE("printable: keeps text and defuses what a terminal would obey") {
  CHECK(printable("plain\ntext é €") == "plain\ntext é €");
  CHECK(printable("\x1b[31m\r\t") == "·[31m··");
  CHECK(printable("\xff\xc3(\xe2\x82") == "··(··");
  CHECK(printable("\xc2\x9b") == "··");  // an escape sequence introducer of eight bits
}

}  // namespace
}  // namespace lacuna

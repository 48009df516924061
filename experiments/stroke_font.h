#pragma once
// Writing on images: a small font of strokes with round ends, smooth at any size.

#include <cstdint>
#include <string_view>
#include <vector>

namespace lacuna {

/// An image, rgb [height, width, 3].
struct Image {
  int64_t width = 0, height = 0;
  std::vector<uint8_t> rgb;
};

struct Color {
  uint8_t red = 0, green = 0, blue = 0;
  friend bool operator==(const Color&, const Color&) = default;
};

/// How wide `text` is, in pixels; `size` is the height of a line's letters with those below the line.
double text_width(std::string_view text, double size);

/// Writes `text` from x on, above the line y. What the font lacks (it has what attention patterns are written with) is
/// a box; what lies outside the image is left out.
void draw_text(Image& image, double x, double y, double size, std::string_view text, Color color);

}  // namespace lacuna

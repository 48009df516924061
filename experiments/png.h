#pragma once
// PNG files.

#include <cstdint>
#include <string>
#include <vector>

namespace lacuna {

/// The PNG file of an image, rgb [height, width, 3].
std::string encode_png(const std::vector<uint8_t>& rgb, int64_t width, int64_t height);

}  // namespace lacuna

#pragma once
// What general compressors need for the same bytes: the yardstick beside a model's bits per byte.

#include <string_view>

namespace lacuna {

/// Bits per byte of `bytes` under `gzip -9` (DEFLATE at level 9 in a gzip wrapper) and `bzip2 -9`: 8 * compressed size
/// / size, headers included. zlib ends blocks elsewhere than the gzip program, so the first is within 0.5 % of what
/// `gzip -9 -n | wc -c` tells; the second is exact. Throw Error for no bytes at all.
double gzip_bits_per_byte(std::string_view bytes);
double bzip2_bits_per_byte(std::string_view bytes);

}  // namespace lacuna

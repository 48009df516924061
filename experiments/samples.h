#pragma once
// Samples as people look at them.

#include <filesystem>
#include <string>

#include "core/tensor.h"
#include "experiments/experiment.h"

namespace lacuna {

/// Writes sequences u8 [count, length] to `path`: a text with a line between them, or images of 32 x 32 as a PNG grid
/// (what a short sequence leaves out is black).
void write_samples(const std::filesystem::path& path, const Tensor& tokens, Medium medium);

/// The file name extension of the medium: ".txt" or ".png".
std::string sample_extension(Medium medium);

/// The tokens that a prompt gives: the bytes of a text, or the upper half of a 32 x 32 image in a PNG file. Undefined
/// for an empty prompt. Throws UsageError for anything else.
Tensor read_prompt(const std::string& prompt, Medium medium);

/// Bytes as a terminal may show them: valid UTF-8 and line breaks, everything else as a middle dot.
std::string printable(std::string_view bytes);

}  // namespace lacuna

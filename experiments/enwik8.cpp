// enwik8, Sec. 7.2. The paper reports 0.99 bits per byte on the test bytes for 95M parameters with the fixed pattern.
//
//   enwik8 train --preset enwik8-95m-fixed --data enwik8 --out runs/enwik8
//
// Any other file of bytes works the same way; its scores compare with nothing but themselves. Values are in
// presets.cpp.

#include "data/text.h"
#include "experiments/experiment.h"

int main(int argc, char** argv) {
  const lacuna::Experiment experiment{
      .program = "enwik8",
      .summary = "a Sparse Transformer on the bytes of enwik8, or of any file",
      .medium = lacuna::Medium::text,
      .open_data = lacuna::open_text,
      .data_help = "a file, or a folder with one; default: the text sample shipped with the source",
      .default_data = LACUNA_SOURCE_DIR "/data/sample/wikipedia_sample.txt",
      .missing_data = "",
      .prompt_help = "text to continue",
  };
  return lacuna::run_experiment(experiment, argc, argv);
}

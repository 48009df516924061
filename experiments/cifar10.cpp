// CIFAR-10, Sec. 7.1. The paper reports 2.80 bits per dim on the test set for 59M parameters with the strided pattern.
//
//   cifar10 train --preset cifar10-59m-strided --data cifar-10-batches-bin --out runs/cifar10
//
// Values, and those that the paper does not give, are in presets.cpp.

#include "data/cifar10.h"
#include "experiments/experiment.h"

int main(int argc, char** argv) {
  const lacuna::Experiment experiment{
      .program = "cifar10",
      .summary = "a Sparse Transformer on the 32 x 32 images of CIFAR-10",
      .medium = lacuna::Medium::image,
      .open_data = [](const std::filesystem::path& path, int64_t) { return lacuna::open_cifar10(path); },
      .data_help = "folder with data_batch_1.bin ... test_batch.bin (`scripts/get_data cifar10` fetches them)",
      .default_data = "",
      .missing_data =
          "--data is missing: the folder of CIFAR-10's binary version; `scripts/get_data cifar10` fetches it",
      .prompt_help = "PNG file of 32 x 32 pixels whose lower half is drawn anew",
  };
  return lacuna::run_experiment(experiment, argc, argv);
}

// A program on the emulated GPU: what it says of a GPU that it cannot use, and that it says so before it does anything;
// a whole run on one that it can.

#include <algorithm>

#include "tests/experiments/program_runs.h"

namespace lacuna {
namespace {

const std::string kProgram = LACUNA_BINARY_DIR "/tests/enwik8_emulated";

/// A variable of the environment of the programs that are run while it lives.
class Environment {
 public:
  Environment(const char* name, const std::string& value) : name_(name) { ::setenv(name, value.c_str(), /*overwrite=*/1); }
  ~Environment() { ::unsetenv(name_); }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  const char* name_;
};

constexpr const char* kGpu = "LACUNA_EMULATED_GPU";  // what is other than usual with it; see runtime_emulated.cpp

Strings steps_of_tiny_train(const TemporaryFolder& folder, const std::string& out, const std::string& steps) {
  Strings command = tiny_train(folder, out);
  *(std::find(command.begin(), command.end(), "--steps") + 1) = steps;
  command[0] = kProgram;
  return command;
}

Strings on_gpu(Strings command, const Strings& more = {}) {
  command[0] = kProgram;
  return command + Strings{"--device", "cuda"} + more;
}

/// Checks that a command ends with code 1 and this line alone on standard error, and leaves no run behind. There is no
/// such data: who opened it first would say that.
void expect_refused(const Strings& settings, const std::string& reason) {
  const TemporaryFolder folder;
  const Outcome outcome = run(on_gpu(tiny_train(folder, "out"), settings));
  CHECK(outcome.code == 1);
  CHECK(outcome.out == "");
  CHECK_MESSAGE((outcome.err.starts_with("enwik8: --device cuda: " + reason) &&
                 outcome.err.find('\n') == outcome.err.size() - 1),
                "got: " << outcome.err << "expected: " << reason);
  CHECK_FALSE(fs::exists(folder.path() / "out"));
}

TEST_CASE("programs on a GPU: one that cannot be used is refused on one line, before anything is read") {
  const auto on = [](const std::string& gpu, const std::string& reason) {
    CAPTURE(gpu);
    const Environment emulated(kGpu, gpu);
    expect_refused({}, reason);
  };
  on("no-device=no NVIDIA driver is installed on this machine",
     "no NVIDIA driver is installed on this machine; use --device auto or cpu\n");
  on("major=7", "cuda:0 is emulated GPU of compute capability 7.0; the kernels need 8.0 or newer; use");
  on("no-kernels=no kernel image is available for execution on the device",
     "cuda:0 is emulated GPU of compute capability 9.0; this build has no kernels for it: no kernel image is");
  on("memory=65536", "a training step needs ");
}

TEST_CASE("programs on a GPU: models that its kernels do not take are refused on one line, before anything is read") {
  const auto with = [](const std::string& dtype, const Strings& settings, const std::string& reason) {
    Strings flags{"--dtype", dtype};
    for (const std::string& setting : settings) flags = flags + Strings{"--set", setting};
    CAPTURE(settings.empty() ? dtype : settings[0]);
    expect_refused(flags, reason);
  };
  for (const char* dtype : {"f32", "bf16", "f16"})
    with(dtype, {"d_model=2048", "d_qk=16", "n_heads=1"},
         "sparse_attention: d_qk + d_v must be at most 2048 on a GPU, got 16 + 2048; use --device auto or cpu\n");
  with("bf16", {"d_model=7424", "n_heads=58"}, "layer_norm: on this GPU d_model must be at most 7168, got 7424; use");
  std::string views = "1", rates = "1";
  for (int64_t i = 0; i < 32; ++i) {
    views += ":1";
    rates += ":1";
  }
  with("bf16", {concat("attention=longnet(w=", views, ", r=", rates, ')')},
       "sparse_attention: a head may merge at most 32 views on a GPU, got 33; use");
  with("f64", {}, "a GPU computes in f32, bf16 and f16, not in f64; use");
}

#ifdef LACUNA_DRIVER_FOLDER
TEST_CASE("programs on a GPU: a driver that is too old, or has no GPU") {
  const Environment driver("LD_LIBRARY_PATH", LACUNA_DRIVER_FOLDER);
  const auto with = [](const char* version, const std::string& message) {
    const Environment of("LACUNA_DRIVER_VERSION", version);
    expect({kEnwik8, "train", "--device", "cuda"}, 1, "enwik8: --device cuda: the NVIDIA driver " + message);
  };
  with("11080", "is too old: it supports CUDA 11.8, this build needs CUDA 1");
  with("13020", "sees no GPU");
  const Environment hidden("CUDA_VISIBLE_DEVICES", "7");
  with("13020", "sees no GPU (CUDA_VISIBLE_DEVICES=7)");
}
#endif

TEST_CASE("programs on a GPU: auto takes the CPU and says why") {
  const Environment old(kGpu, "major=7");
  const TemporaryFolder folder;
  write_text(folder);
  expect(steps_of_tiny_train(folder, "out", "1"), 0,
         "(no GPU: cuda:0 is emulated GPU of compute capability 7.0; the kernels need 8.0 or newer)");
}

TEST_CASE("programs on a GPU: heads that tensor cores do not take are computed after a line that says so") {
  const TemporaryFolder folder;
  write_text(folder);
  const Outcome outcome = run(on_gpu(steps_of_tiny_train(folder, "out", "1"),
                                     {"--dtype", "bf16", "--set", "d_model=20", "--set", "n_layers=1"}));
  CHECK(outcome.code == 0);
  CHECK(contains(outcome.out,
                 "note: attention runs without tensor cores, many times slower: they take heads whose widths are "
                 "multiples of 8 up to 128, these have 10 and 10\n"));
}

TEST_CASE("programs on a GPU: train, evaluate and draw, with graphs and, after a line, without") {
  const TemporaryFolder folder;
  write_text(folder);
  const std::string note = "note: steps run kernel by kernel, not as a CUDA graph: graph: out of memory\n";
  // A step as one graph, and as one for each micro-batch and one for the update.
  for (const Strings& settings : {Strings{"--dtype", "bf16"}, Strings{"--dtype", "f16", "--set", "micro_batch=1"}}) {
    CAPTURE(settings[1]);
    const auto train = [&](const std::string& out) {
      return run(
          on_gpu(steps_of_tiny_train(folder, settings[1] + out, "4"), settings + Strings{"--set", "n_layers=1"}));
    };
    const Outcome recorded = train("recorded");
    CAPTURE(recorded.err);
    REQUIRE(recorded.code == 0);
    CHECK(contains(recorded.out, "cuda:0: emulated GPU"));
    CHECK_FALSE(contains(recorded.out, "note:"));

    const Environment without(kGpu, "no-graphs=out of memory");
    const Outcome plain = train("plain");
    REQUIRE(plain.code == 0);
    CHECK(plain.out.find(note) != plain.out.rfind(note));  // of training, and of sampling
    CHECK(weights_of(folder.path() / (settings[1] + "plain"), 4) ==
          weights_of(folder.path() / (settings[1] + "recorded"), 4));
  }
  CHECK(contains(read_file(folder.path() / "f16recorded" / "metrics.jsonl"), "\"loss_scale\":65536"));

  const std::string run_folder = (folder.path() / "bf16recorded").string();
  expect(on_gpu({"", "eval"}, {"--checkpoint", run_folder}), 0, "bits per byte");
  expect(on_gpu({"", "sample"}, {"--checkpoint", run_folder, "--length", "4", "--out", run_folder + "/s.txt"}), 0,
         "4 tokens");
}

}  // namespace
}  // namespace lacuna

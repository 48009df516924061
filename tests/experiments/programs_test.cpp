// The programs, driven as a user would: what they print, write and return.

#include <cmath>
#include <fstream>

#include "core/archive.h"
#include "core/cuda/runtime.h"
#include "experiments/environment.h"
#include "tests/experiments/program_runs.h"

namespace lacuna {
namespace {

TEST_CASE("train: attention that is slower than dense is said once, and in the metrics") {
  const TemporaryFolder folder;
  write_text(folder);
  const std::string eight_times_dense = "attention=longnet(w=64:64:64:64:64:64:64:64, r=1:1:1:1:1:1:1:1)";
  const Outcome slow = run(tiny_train(folder, "slow", {"--set", eight_times_dense}));
  const Outcome dense = run(tiny_train(folder, "dense", {"--set", "attention=dense"}));
  CAPTURE(slow.out);
  const std::string warning = "warning: at n_ctx = 64 this attention is slower than dense";
  CHECK(contains(slow.out, warning));
  CHECK(slow.out.find(warning) == slow.out.rfind(warning));
  CHECK_FALSE(contains(dense.out, "slower than dense"));
  for (const char* out : {"slow", "dense"}) {
    std::istringstream lines(read_file(folder.path() / out / "metrics.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const auto json = nlohmann::json::parse(line);
      if (!json.contains("eval")) CHECK(json.at("slower_than_dense") == (out == std::string("slow")));
    }
  }
}

TEST_CASE("programs: help and version are answers, not errors") {
  for (const std::string& program : {kEnwik8, kCifar10}) {
    expect({program, "--help"}, 0, "Exit codes: 0 done");
    expect({program, "--version"}, 0, "lacuna");
    for (const char* command : {"train", "eval", "sample", "plan", "parity"})
      expect({program, command, "--help"}, 0, "Example:");
  }
}

TEST_CASE("programs: misuse ends with code 2 and says what to do") {
  expect({kEnwik8}, 2, "enwik8: a command is missing");
  expect({kEnwik8, "trian"}, 2, "enwik8: unknown command trian (did you mean train?)");
  expect({kEnwik8, "train", "--stpes", "5"}, 2, "enwik8: unknown flag --stpes (did you mean --steps?)");
  expect({kEnwik8, "train", "--set", "d_modle=8"}, 2, "unknown key d_modle (did you mean d_model?)");
  expect({kEnwik8, "train", "--preset", "lptop"}, 2, "unknown preset lptop (did you mean laptop?)");
  if (gpu::device_count() == 0) {
    expect({kEnwik8, "train", "--device", "cuda"}, 1, "--device cuda: " + gpu::why_no_device());
    expect({kEnwik8, "train", "--device", "auto", "--dry-run"}, 0, "dry run");
  }
  expect({kEnwik8, "train", "--zero", "1"}, 2, "not in this build");
  expect({kEnwik8, "train", "--dtype", "u8"}, 2, "--dtype must be f32, f64, bf16 or f16");
  expect({kEnwik8, "train", "--set", "n_heads=5"}, 2, "d_model must be a multiple of n_heads = 5");
  expect({kEnwik8, "train", "--set", "attention=column(stride=0)"}, 2, "column: stride must be at least 1, got 0");
  expect({kEnwik8, "train", "--set", "lr=nan"}, 2, "train.lr must be a number");
  expect({kEnwik8, "train", "--config", "/nonexistent.toml"}, 2, "--config /nonexistent.toml: ");
  expect({kEnwik8, "train", "--config", "/tmp"}, 2, "--config /tmp: cannot read: Is a directory");
  expect({kEnwik8, "parity"}, 2, "parity needs --out");
  expect({kEnwik8, "parity", "--out", "/nonexistent/x"}, 2, "parity needs --tokens");
  expect({kCifar10, "train"}, 2, "cifar10: --data is missing");
  expect({kCifar10, "train", "--preset", "enwik8-95m-fixed"}, 2, "belongs to the program enwik8");
  expect({kCifar10, "eval", "--min-context", "5"}, 2, "--min-context slides over a text");
}

TEST_CASE("programs: bad data ends with a message that names it, before anything is written") {
  const TemporaryFolder folder;
  const auto train = [&](const std::string& program, const fs::path& data, const Strings& more = {}) {
    return Strings{program, "train", "--data", data.string(), "--out", (folder.path() / "out").string()} + more;
  };
  expect(train(kEnwik8, "/nonexistent"), 1, "no such file or folder: '/nonexistent'");
  expect(train(kEnwik8, folder.write("no bytes", "")), 1, "no bytes' is empty");
  const fs::path secret = folder.write("secret", "0123456789");
  fs::permissions(secret, fs::perms::none);
  const Strings not_root = ::geteuid() == 0  // whom nothing is unreadable to
                               ? Strings{"setpriv", "--bounding-set=-dac_override,-dac_read_search"}
                               : Strings{};
  expect(not_root + train(kEnwik8, secret), 1, concat(secret.string(), ": cannot open for reading: Permission denied"));
  expect(train(kEnwik8, folder.write("short", std::string(300, 'x')),
               {"--set", "n_ctx=300", "--set", "position_extents=300"}),
         2, "n_ctx is 300, longer than the train split");
  expect(train(kEnwik8, folder.write("lat\xe9n", std::string(5000, 'x'))), 2, "the path must be valid UTF-8");
  expect(train(kCifar10, "/nonexistent"), 1, "no such folder: '/nonexistent'");
  folder.write("cifar/data_batch_1.bin", "too short");
  for (const char* name :
       {"data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin", "test_batch.bin"})
    folder.write(concat("cifar/", name), "");
  expect(train(kCifar10, folder.path() / "cifar"), 1, "data_batch_1.bin' must be 30730000 bytes");
  CHECK_FALSE(fs::exists(folder.path() / "out"));
}

TEST_CASE("plan: exact parameters of the paper's presets; says whether they fit") {
  expect({kCifar10, "plan", "--preset", "cifar10-59m-strided"}, 0, "59,196,928");
  expect({kEnwik8, "plan", "--preset", "enwik8-95m-fixed", "--device-memory", "1T"}, 0, "fits:");
  expect({kEnwik8, "plan", "--preset", "enwik8-95m-fixed", "--device-memory", "1G"}, 0, "does not fit:");
  expect({kEnwik8, "plan", "--preset", "imagenet64-152m", "--ranks", "8"}, 0, "151,645,184");
  expect({kEnwik8, "plan", "--ranks", "1000"}, 2, "--ranks 1000 must divide the batch");
}

TEST_CASE("train: --print-config and --dry-run write nothing") {
  const TemporaryFolder folder;
  write_text(folder);
  expect(tiny_train(folder, "out", {"--print-config"}), 0, "n_ctx = 64");
  expect(tiny_train(folder, "out", {"--dry-run"}), 0, "dry run: nothing was written");
  CHECK_FALSE(fs::exists(folder.path() / "out"));

  const fs::path printed = folder.write("printed.toml", run(tiny_train(folder, "out", {"--print-config"})).out);
  CHECK(run({kEnwik8, "train", "--config", printed.string(), "--print-config"}).out == read_file(printed));
}

TEST_CASE("train: a run leaves what the documentation promises, and eval and sample read it") {
  const TemporaryFolder folder;
  write_text(folder);
  const fs::path out = folder.path() / "out";
  const Outcome first = run(tiny_train(folder, "out"));
  if (gpu::device_count() == 0) CHECK(contains(first.out, "(no GPU: " + gpu::why_no_device() + ")"));
  CAPTURE(first.out);
  CAPTURE(first.err);
  REQUIRE(first.code == 0);
  CHECK(contains(first.out, "n_ctx = 64"));
  CHECK(contains(first.out, "gzip -9"));
  CHECK(contains(first.out, "bzip2 -9"));
  CHECK(first.out.find("n_ctx = 64") < first.out.find("step 1/20"));
  for (const char* name : {"config.toml", "command.txt", "metrics.jsonl", "logs/rank-00000.log", "errors",
                           "samples/step-00000020.txt", "checkpoints/step-00000020/model.safetensors",
                           "checkpoints/step-00000020/train_state.json", "checkpoints/step-00000020/manifest.json"})
    CHECK_MESSAGE(fs::exists(out / name), name);
  CHECK(steps_of(out).first == one_to(20));
  CHECK(steps_of(out).second == std::vector<int64_t>{5, 10, 15, 20});
  CHECK(contains(read_file(out / "command.txt"), " train --data "));  // the program may be quoted
  CHECK_FALSE(has_leftovers(out));

  // A repeated command finds nothing to do and says so; the curve stays as it was.
  const std::string metrics = read_file(out / "metrics.jsonl"), weights = weights_of(out);
  expect(tiny_train(folder, "out"), 0, "this run is finished: ");
  CHECK(read_file(out / "metrics.jsonl") == metrics);
  CHECK(weights_of(out) == weights);

  const std::string run_folder = out.string(), data = (folder.path() / "data.txt").string();
  expect({kEnwik8, "eval", "--checkpoint", run_folder, "--split", "valid"}, 0, "valid: ");
  expect({kEnwik8, "eval", "--checkpoint", run_folder, "--data", data, "--min-context", "48"}, 0,
         "at least 48 bytes before each");
  expect(
      {kEnwik8, "eval", "--checkpoint", (out / "checkpoints/step-00000020/model.safetensors").string(), "--data", data},
      0, "test: ");
  expect({kEnwik8, "eval", "--checkpoint", run_folder, "--min-context", "64"}, 2,
         "--min-context must be from 0 to n_ctx - 1 = 63");
  expect({kEnwik8, "eval", "--checkpoint", run_folder, "--preset", "laptop"}, 2, "both name a model");
  expect({kCifar10, "sample", "--checkpoint", run_folder}, 1, "is of the program enwik8, not cifar10");

  const fs::path one = folder.path() / "one.txt", two = folder.path() / "two.txt";
  expect({kEnwik8, "sample", "--checkpoint", run_folder, "--prompt", "line ", "--count", "2", "--out", one.string()}, 0,
         "2 of 64 tokens");
  expect({kEnwik8, "sample", "--checkpoint", run_folder, "--prompt", "line ", "--count", "2", "--out", two.string()}, 0,
         "line ");
  CHECK(read_file(one) == read_file(two));
  CHECK(contains(read_file(one), "----- sample 1 -----\nline "));
  expect({kEnwik8, "sample", "--checkpoint", run_folder, "--length", "65"}, 2,
         "--length must be at most the model's n_ctx = 64");
  expect({kEnwik8, "sample", "--checkpoint", run_folder, "--length", "5", "--prompt", "12345"}, 2, "leaves nothing");

  const fs::path folder_in_the_way = folder.path() / "folder";
  fs::create_directory(folder_in_the_way);
  const Outcome nowhere = run({kEnwik8, "sample", "--checkpoint", run_folder, "--out", folder_in_the_way.string()});
  CHECK(nowhere.code == 1);
  CHECK(contains(nowhere.err, "folder: must be a regular file, is a folder"));
  CHECK(nowhere.out.empty());  // before anything is drawn

  // A changed configuration is refused with the difference; more steps are not a change.
  const Outcome changed = run(tiny_train(folder, "out", {"--set", "d_model=32", "--seed", "2"}));
  CHECK(changed.code == 2);
  CHECK(contains(changed.err, "model.d_model: 16 -> 32"));
  CHECK(contains(changed.err, "train.seed: 1 -> 2"));
  std::ofstream(data, std::ios::app) << "more";
  expect(tiny_train(folder, "out"), 2, "cannot go on with other data");
  write_text(folder);
  CHECK(weights_of(out) == weights);

  // Starting over keeps the old run.
  expect(tiny_train(folder, "out", {"--resume", "none"}), 0, "the earlier run is kept in ");
  CHECK(weights_of(out) == weights);
  CHECK(weights_of(out / "previous-1") == weights);
  CHECK(read_file(out / "previous-1" / "metrics.jsonl") == metrics);
}

TEST_CASE("train: a progress bar on a terminal, plain lines elsewhere") {
  const TemporaryFolder folder;
  write_text(folder);
  const Outcome lines = run(tiny_train(folder, "lines"));
  CHECK(contains(lines.out, "step 1/20  8.0000 bits per byte  "));
  CHECK(lines.out.find_first_of("\r\033") == std::string::npos);
  const Outcome bar = run({"env", "TERM=xterm", "script", "-qec", quote_command(tiny_train(folder, "bar")),
                           "/dev/null"});  // has a terminal
  CAPTURE(bar.out);
  CHECK(bar.code == 0);
  CHECK(contains(bar.out, "\r\033[Kstep 1/20 "));
  CHECK(contains(bar.out, "─"));
  CHECK(contains(bar.out, " tokens/s  "));
}

TEST_CASE("train: micro-batches give the same gradient up to rounding; f64 trains too") {
  const TemporaryFolder folder;
  write_text(folder);
  const auto last_loss = [&](const std::string& out, const Strings& more) {
    REQUIRE(run(tiny_train(folder, out, Strings{"--dtype", "f64"} + more)).code == 0);
    std::istringstream lines(read_file(folder.path() / out / "metrics.jsonl"));
    double loss = 0.0;
    for (std::string line; std::getline(lines, line);) loss = nlohmann::json::parse(line).value("loss_nats", loss);
    return loss;
  };
  const double whole = last_loss("whole", {}), parts = last_loss("parts", {"--set", "micro_batch=1"});
  CHECK(std::abs(whole - parts) < 1e-9 * whole);
  CHECK(Archive(folder.path() / "whole/checkpoints/step-00000020/model.safetensors").entries().at("norm.gain").dtype ==
        "F64");
}

TEST_CASE("train: bf16 and f16 train, eval and sample, from f32 weights") {
  const TemporaryFolder folder;
  write_text(folder);
  for (const std::string& dtype : {std::string("bf16"), std::string("f16")}) {
    CAPTURE(dtype);
    REQUIRE(run(tiny_train(folder, dtype, {"--dtype", dtype})).code == 0);
    std::istringstream lines(read_file(folder.path() / dtype / "metrics.jsonl"));
    std::vector<double> losses;
    for (std::string line; std::getline(lines, line);) {
      const auto json = nlohmann::json::parse(line);
      if (!json.contains("loss_nats")) continue;
      losses.push_back(json["loss_nats"]);
      CHECK(json["loss_scale"] == (dtype == "f16" ? 65536 : 1));
    }
    REQUIRE(losses.size() == 20);
    CHECK(losses.front() == doctest::Approx(std::log(256.0)));
    CHECK(losses.back() < losses.front());
    const fs::path checkpoint = folder.path() / dtype / "checkpoints/step-00000020";
    CHECK(Archive(checkpoint / "model.safetensors").entries().at("norm.gain").dtype == "F32");
    CHECK(run({kEnwik8, "sample", "--checkpoint", checkpoint.string(), "--length", "5", "--out",
               (folder.path() / (dtype + ".txt")).string()})
              .code == 0);
  }
}

TEST_CASE("cifar10: trains on images, samples a PNG, completes one") {
  const TemporaryFolder folder;
  // Black images with label 0: files of zeros, which take no space on the disk.
  for (const char* name : {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin",
                           "data_batch_5.bin", "test_batch.bin"})
    fs::resize_file(folder.write(concat("cifar/", name), ""), 30'730'000);
  const fs::path out = folder.path() / "out";
  const Outcome outcome = run({kCifar10, "train",          "--data",  (folder.path() / "cifar").string(),
                               "--out",  out.string(),     "--steps", "2",
                               "--set",  "d_model=8",      "--set",   "n_layers=1",
                               "--set",  "d_qk=8",         "--set",   "d_ff=8",
                               "--set",  "batch=1",        "--set",   "eval_windows=1",
                               "--set",  "test_windows=1", "--set",   "sample_count=1"});
  CAPTURE(outcome.out);
  CAPTURE(outcome.err);
  REQUIRE(outcome.code == 0);
  CHECK(contains(outcome.out, "test: "));
  CHECK_FALSE(contains(outcome.out, "gzip"));
  const fs::path image = out / "samples" / "step-00000002.png", completed = folder.path() / "completed.png";
  CHECK(read_file(image).substr(1, 3) == "PNG");
  expect({kCifar10, "sample", "--checkpoint", out.string(), "--prompt", image.string(), "--out", completed.string(),
          "--count", "1"},
         0, "1 of 3072 tokens");
  CHECK(read_file(completed).substr(1, 3) == "PNG");
}

double largest(const Tensor& t) {
  double value = 0.0;
  for (int64_t i = 0; i < t.numel(); ++i) value = std::max(value, std::abs(t.data<double>()[i]));
  return value;
}

TEST_CASE("parity: reproduces the golden files in f64 and f32") {
  const TemporaryFolder folder;
  int64_t cases = 0;
  for (const fs::directory_entry& folder_of_case : fs::directory_iterator(kGolden)) {
    if (!folder_of_case.is_directory()) continue;
    const fs::path& golden = folder_of_case.path();
    ++cases;
    const Archive expected(golden / "expected.safetensors");
    for (const bool exact : {true, false}) {
      const char* const dtype = exact ? "f64" : "f32";
      const double tolerance = exact ? 1e-9 : 1e-4;
      const fs::path out = folder.path() / "ours.safetensors";
      const Outcome outcome =
          run({kEnwik8, "parity", "--checkpoint", (golden / "model.safetensors").string(), "--tokens",
               (golden / "tokens.bin").string(), "--dtype", dtype, "--out", out.string()});
      CAPTURE(golden.filename().string());
      CAPTURE(dtype);
      CAPTURE(outcome.err);
      REQUIRE(outcome.code == 0);
      const Archive ours(out);
      CHECK(ours.entries().size() == expected.entries().size());
      for (const auto& expected_entry : expected.entries()) {
        const std::string& name = expected_entry.first;
        CAPTURE(name);
        const Tensor want = expected.read(name), got = to_dtype(ours.read(name), DType::f64);
        REQUIRE(got.shape() == want.shape());
        double distance = 0.0;
        for (int64_t i = 0; i < want.numel(); ++i)
          distance = std::max(distance, std::abs(got.data<double>()[i] - want.data<double>()[i]));
        CHECK(distance <= tolerance * std::max(largest(want), 1e-3));
      }
    }
  }
  CHECK(cases >= 10);
}

TEST_CASE("parity: initial weights are those of the seed, and tokens must fit") {
  const TemporaryFolder folder;
  const auto init = [&](const char* name, const char* seed) {
    const fs::path out = folder.path() / name;
    expect({kEnwik8, "parity", "--init-only", "--seed", seed, "--out", out.string()}, 0,
           concat("initial weights of seed ", seed));
    return read_file(out);
  };
  const std::string one = init("one", "1");
  CHECK(init("again", "1") == one);
  CHECK(init("two", "2") != one);
  const fs::path model = fs::path(kGolden) / "dense" / "model.safetensors";  // n_ctx = 36
  expect({kEnwik8, "parity", "--checkpoint", model.string(), "--tokens",
          folder.write("t", std::string(37, 'x')).string(), "--out", (folder.path() / "out").string()},
         2, "must have batch * n_ctx = 1 * 36 bytes, has 37");
}

TEST_CASE("patterns: exit codes") {
  const TemporaryFolder folder;
  const auto code = [](const Strings& arguments) { return run(Strings{kPatterns} + arguments).code; };
  CHECK(code({"check", "local(window=4), column(stride=4)", "--n", "16"}) == 0);
  CHECK(code({"check", "local(window=4)", "--n", "16"}) == 1);
  CHECK(code({"check", "local(window=0)", "--n", "16"}) == 2);
  CHECK(code({"cost", "dense", "--n", "16"}) == 0);
  CHECK(code({"draw", "--out", (folder.path() / "a.png").string(), "--out", (folder.path() / "a.svg").string()}) == 0);
  CHECK(folder.count() == 2);
  CHECK(code({"draw", "--out", (folder.path() / "none" / "a.png").string()}) == 1);
  CHECK(code({"draw", "dense", "--n", "5000"}) == 2);
  const Outcome piped = run({kPatterns, "draw", "dense", "--n", "2"});
  CHECK(piped.out == "dense\nn = 2; query 0 in rows of 2:\n\n██\n\n██\n▓▓██\n\n▓▓ dense\n");
}

}  // namespace
}  // namespace lacuna

// The programs, driven as a user would: what they print, write and return, and that nothing that happens to a run
// changes its weights.

#include <sys/stat.h>

#include <cmath>
#include <fstream>
#include <set>
#include <sstream>

#include <nlohmann/json.hpp>

#include "core/archive.h"
#include "core/cuda/runtime.h"
#include "core/file.h"
#include "experiments/run_state.h"
#include "tests/experiments/process.h"
#include "tests/support/expect_error.h"

namespace lacuna {
namespace fs = std::filesystem;
namespace {

using Strings = std::vector<std::string>;

const std::string kEnwik8 = LACUNA_BINARY_DIR "/bin/enwik8", kCifar10 = LACUNA_BINARY_DIR "/bin/cifar10",
                  kPatterns = LACUNA_BINARY_DIR "/bin/patterns";
constexpr const char* kGolden = LACUNA_SOURCE_DIR "/tests/golden";

// 4 KB of text to learn from.
fs::path write_text(const TemporaryFolder& folder) {
  std::string text;
  while (text.size() < 4096) text += concat("line ", text.size(), ": the quick brown fox\n");
  return folder.write("data.txt", text);
}

// A run whose steps take a millisecond.
Strings tiny_train(const TemporaryFolder& folder, const std::string& out, const Strings& more = {}) {
  return Strings{kEnwik8,   "train",
                 "--data",  (folder.path() / "data.txt").string(),
                 "--out",   (folder.path() / out).string(),
                 "--steps", "20",
                 "--set",   "n_ctx=64",
                 "--set",   "position_extents=8,8",
                 "--set",   "d_model=16",
                 "--set",   "n_layers=2",
                 "--set",   "n_heads=2",
                 "--set",   "dropout=0.1",
                 "--set",   "attention=local(window=8), column(stride=8)",
                 "--set",   "batch=2",
                 "--set",   "warmup_steps=2",
                 "--set",   "eval_every=5",
                 "--set",   "checkpoint_every=5",
                 "--set",   "sample_length=8",
                 "--set",   "sample_count=1"} +
         more;
}

// Everything that training computes, at step 20.
std::string weights_of(const fs::path& run, int64_t step = 20) {
  const fs::path checkpoint = run / "checkpoints" / checkpoint_name(step);
  return read_file(checkpoint / "model.safetensors") + read_file(checkpoint / "ema.safetensors") +
         read_file(checkpoint / "optimizer-00000-of-00001.safetensors");
}

// Steps of metrics.jsonl that train, and that evaluate the validation split.
std::pair<std::vector<int64_t>, std::vector<int64_t>> steps_of(const fs::path& run) {
  std::pair<std::vector<int64_t>, std::vector<int64_t>> steps;
  std::istringstream lines(read_file(run / "metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const auto json = nlohmann::json::parse(line);
    if (json.value("eval", "") == "test") continue;
    (json.contains("eval") ? steps.second : steps.first).push_back(json.at("step"));
  }
  return steps;
}

std::vector<int64_t> one_to(int64_t n) {
  std::vector<int64_t> steps;
  for (int64_t i = 1; i <= n; ++i) steps.push_back(i);
  return steps;
}

int64_t newest_step(const fs::path& run) {
  const auto checkpoints = list_checkpoints(run / "checkpoints");
  return checkpoints.empty() ? 0 : std::stoll(checkpoints.front().filename().string().substr(5));
}

bool has_leftovers(const fs::path& run) {
  for (const fs::path& folder : {run, run / "checkpoints", run / "samples"})
    for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with(".") && name != ".lock") return true;
    }
  return false;
}

// Checks exit code and message of a command, and that the message is what a person can read: no crash, one cause.
void expect(const Strings& command, int code, std::string_view message) {
  const Outcome outcome = run(command);
  CAPTURE(outcome.out);
  CAPTURE(outcome.err);
  CHECK(outcome.code == code);
  CHECK_MESSAGE(contains(code == 0 ? outcome.out : outcome.err, message), "expected: " << std::string(message));
}

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
  expect({kEnwik8, "train", "--set", "attention=column(stride=0)"}, 2, "stride");
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
  expect(train(kEnwik8, "/nonexistent"), 1, "/nonexistent");
  expect(train(kEnwik8, folder.write("empty", "")), 1, "empty");
  const fs::path secret = folder.write("secret", "0123456789");
  fs::permissions(secret, fs::perms::none);
  const Strings not_root = ::geteuid() == 0  // whom nothing is unreadable to
                               ? Strings{"setpriv", "--bounding-set=-dac_override,-dac_read_search"}
                               : Strings{};
  expect(not_root + train(kEnwik8, secret), 1, concat(secret.string(), ": cannot open for reading: Permission denied"));
  expect(train(kEnwik8, folder.write("short", std::string(300, 'x')),
               {"--set", "n_ctx=300", "--set", "position_extents=300"}),
         2, "300");
  expect(train(kCifar10, "/nonexistent"), 1, "/nonexistent");
  folder.write("cifar/data_batch_1.bin", "too short");
  for (const char* name :
       {"data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin", "test_batch.bin"})
    folder.write(concat("cifar/", name), "");
  expect(train(kCifar10, folder.path() / "cifar"), 1, "data_batch_1.bin");
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

TEST_CASE("train: SIGKILL at any time, also while a checkpoint is written, changes no bit of the result") {
  const TemporaryFolder folder;
  write_text(folder);
  const Strings every_step{"--set", "checkpoint_every=1", "--set", "keep=2"};
  REQUIRE(run(tiny_train(folder, "straight", every_step)).code == 0);
  const fs::path straight = folder.path() / "straight", killed = folder.path() / "killed";

  int kills = 0, kills_while_saving = 0;
  for (int attempt = 0; attempt < 8; ++attempt) {
    const int64_t before = newest_step(killed);
    Process process(tiny_train(folder, "killed", every_step));
    // Two kills in three when the next checkpoint is being written, the others a little after it is there.
    const bool while_saving = attempt % 3 != 2;
    const std::string temporary = concat(".tmp-", checkpoint_name(before + 2), "-", process.pid());
    if (while_saving)
      process.wait_until(
          [&] { return fs::exists(killed / "checkpoints" / temporary) || newest_step(killed) > before + 2; });
    else
      process.wait_until([&] { return newest_step(killed) > before; });
    std::this_thread::sleep_for(std::chrono::microseconds(while_saving ? attempt * 50 : attempt * 700));
    process.signal(SIGKILL);
    if (process.finish().code != 128 + SIGKILL) continue;
    ++kills;
    kills_while_saving += fs::exists(killed / "checkpoints" / temporary);
    CHECK(newest_good_checkpoint(killed / "checkpoints").rejected.empty());
  }
  MESSAGE(kills << " kills, " << kills_while_saving << " while saving");
  CHECK(kills >= 4);
  REQUIRE(run(tiny_train(folder, "killed", every_step)).code == 0);
  CHECK(weights_of(killed) == weights_of(straight));
  CHECK(steps_of(killed) == steps_of(straight));
  CHECK_FALSE(has_leftovers(killed));
}

TEST_CASE("train: a signal to stop saves at the next step and exits with 0; the same command goes on") {
  const TemporaryFolder folder;
  write_text(folder);
  REQUIRE(run(tiny_train(folder, "straight")).code == 0);
  const fs::path stopped = folder.path() / "stopped";
  int64_t stops = 0;
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) {
    CAPTURE(signal);
    const int64_t before = newest_step(stopped);
    Process process(tiny_train(folder, "stopped"));
    process.wait_until([&] {
      return fs::exists(stopped / "metrics.jsonl") && steps_of(stopped).first.size() > static_cast<size_t>(before);
    });
    process.signal(signal);
    if (signal != SIGINT) process.signal(signal);  // job systems send it to each of their layers
    const Outcome outcome = process.finish();
    CAPTURE(outcome.err);
    CHECK(outcome.code == 0);
    if (!contains(outcome.out, "the same command goes on from there")) continue;
    ++stops;
    CHECK(newest_step(stopped) > before);
    CHECK(contains(outcome.out, concat("stopped by a signal after step ", newest_step(stopped), " of 20")));
  }
  CHECK(stops >= 1);
  REQUIRE(run(tiny_train(folder, "stopped")).code == 0);
  CHECK(weights_of(stopped) == weights_of(folder.path() / "straight"));
  CHECK(steps_of(stopped) == steps_of(folder.path() / "straight"));
}

TEST_CASE("train: a second Ctrl-C ends at once; a folder in use is refused") {
  const TemporaryFolder folder;
  write_text(folder);
  // Steps that take many seconds, so that none ends between the two signals.
  Process process(tiny_train(folder, "busy", {"--set", "batch=20000"}));
  const fs::path busy = folder.path() / "busy";
  process.wait_until([&] {
    return fs::exists(busy / "logs" / "rank-00000.log") &&
           contains(read_file(busy / "logs" / "rank-00000.log"), "run folder");
  });
  expect(tiny_train(folder, "busy"), 1, concat("is in use by process ", process.pid(), " on "));
  process.signal(SIGINT);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  process.signal(SIGINT);
  CHECK(process.finish().code == 130);
  CHECK(run(tiny_train(folder, "busy")).code == 0);
}

TEST_CASE("train: a damaged checkpoint is passed over and named; an explicit one is an error") {
  const TemporaryFolder folder;
  write_text(folder);
  const fs::path out = folder.path() / "out", newest = out / "checkpoints" / "step-00000020";
  REQUIRE(run(tiny_train(folder, "out")).code == 0);
  const std::string weights = weights_of(out);
  std::string model = read_file(newest / "model.safetensors");
  model[model.size() / 2] = static_cast<char>(model[model.size() / 2] ^ 1);
  write_file(newest / "model.safetensors", model);

  expect(tiny_train(folder, "out", {"--resume", newest.string()}), 1,
         "model.safetensors is damaged: its checksum differs");
  expect({kEnwik8, "eval", "--checkpoint", newest.string()}, 1, "model.safetensors is damaged");
  expect({kEnwik8, "sample", "--checkpoint", out.string(), "--length", "8"}, 0, "step-00000015");
  const Outcome resumed = run(tiny_train(folder, "out"));
  CHECK(resumed.code == 0);
  CHECK(contains(resumed.out, concat("passed over: ", newest.string(), ": model.safetensors is damaged")));
  CHECK(contains(resumed.out, "resumed from"));
  CHECK(weights_of(out) == weights);

  // From an older checkpoint by name: the newer ones are kept aside, the result is the same.
  expect(tiny_train(folder, "out", {"--resume", (out / "checkpoints" / "step-00000010").string()}), 0,
         "newer checkpoints are kept in ");
  CHECK(weights_of(out) == weights);
  CHECK(weights_of(out / "previous-1") == weights);
  CHECK(steps_of(out).first == one_to(20));

  fs::remove_all(out / "previous-1");
  for (const fs::path& checkpoint : list_checkpoints(out / "checkpoints"))
    fs::resize_file(checkpoint / "model.safetensors", 100);
  expect(tiny_train(folder, "out"), 1, "none of its checkpoints can be used");
  expect(tiny_train(folder, "out", {"--resume", "none"}), 0, "the earlier run is kept in ");
}

TEST_CASE("programs: a truncated or foreign file is no checkpoint") {
  const TemporaryFolder folder;
  const std::string good = read_file(fs::path(kGolden) / "dense" / "model.safetensors");
  const auto eval = [](const fs::path& file) { return Strings{kEnwik8, "eval", "--checkpoint", file.string()}; };
  expect(eval(folder.write("half.safetensors", good.substr(0, good.size() / 2))), 1, "half.safetensors");
  expect(eval(folder.write("empty.safetensors", "")), 1, "empty.safetensors");
  expect(eval(folder.write("text.safetensors", "this is a letter, not a tensor")), 1, "text.safetensors");
  expect(eval(fs::path(kGolden) / "dense" / "expected.safetensors"), 1, "no checkpoint of a Sparse Transformer");
  expect(eval(folder.path()), 1, "manifest.json is missing");
  expect(eval("/nonexistent"), 1, "no such file or folder");
}

TEST_CASE("train: a full disk ends the run with a message, and no checkpoint is lost or torn") {
  const TemporaryFolder folder;
  write_text(folder);
  const fs::path out = folder.path() / "out";
  REQUIRE(run(tiny_train(folder, "out")).code == 0);
  const std::string weights = weights_of(out);
  // The optimizer's file is twice the weights'; at the limit between them, writing it fails.
  const auto kib = [&](const char* name) { return fs::file_size(out / "checkpoints" / "step-00000020" / name) / 1024; };
  const auto limit = (kib("model.safetensors") + kib("optimizer-00000-of-00001.safetensors")) / 2;
  const Strings limited{"bash", "-c", concat("ulimit -f ", limit, "; exec \"$@\""), "bash"};
  Strings command = tiny_train(folder, "out");
  for (std::string& argument : command)
    if (argument == "20") argument = "24";
  const Outcome full = run(limited + command);
  CAPTURE(full.out);
  CHECK(full.code == 1);
  CHECK(contains(full.err, "optimizer-00000-of-00001.safetensors"));
  CHECK(contains(full.err, "File too large"));
  CHECK(newest_step(out) == 20);
  CHECK(weights_of(out) == weights);
  CHECK(newest_good_checkpoint(out / "checkpoints").rejected.empty());
  CHECK_FALSE(has_leftovers(out));
  CHECK(contains(read_file(out / "errors" / "rank-00000.json"), "File too large"));
  expect(command, 0, "from here on train.steps: 20 -> 24");
}

TEST_CASE("train: a loss that is not finite stops the run and names step and tensor") {
  const TemporaryFolder folder;
  write_text(folder);
  const fs::path out = folder.path() / "out", checkpoint = out / "checkpoints" / "step-00000015";
  REQUIRE(run(tiny_train(folder, "out")).code == 0);
  const RunState state = verify_checkpoint(checkpoint);
  const SparseTransformer model(state.config.model, 1);
  Adam adam(model.parameters(), {});
  Ema ema(model.parameters(), 0.9);
  load_checkpoint(checkpoint, state, {model, adam, &ema});
  model.parameters()["blocks.1.ff.in.bias"].value().data<float>()[3] = NAN;
  save_checkpoint(out / "checkpoints", state, {model, adam, &ema});
  expect(tiny_train(folder, "out", {"--resume", checkpoint.string()}), 1,
         "step 16: the loss is nan; first in weight blocks.1.ff.in.bias (1 of 64 elements)");
  CHECK(contains(read_file(out / "errors" / "rank-00000.json"), "\"step\": 15"));
}

TEST_CASE("train: a reader that goes away does not end the run") {
  const TemporaryFolder folder;
  write_text(folder);
  const Outcome outcome =
      run(Strings{"bash", "-c", "set -o pipefail; \"$@\" | head -n 1", "bash"} + tiny_train(folder, "out"));
  CHECK(outcome.code == 0);
  CHECK(newest_step(folder.path() / "out") == 20);
}

TEST_CASE("train: --out that cannot be written") {
  const TemporaryFolder folder;
  write_text(folder);
  folder.write("out", "a file");
  expect(tiny_train(folder, "out"), 1, "must be a folder, but a file is there");
  expect(tiny_train(folder, "out/inside"), 1, "cannot create the folder");
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

// What may happen to a run: it is killed or stopped, checkpoints are damaged, the disk is full, the folder is taken.

#include <cmath>
#include <fstream>

#include "tests/experiments/program_runs.h"

namespace lacuna {
namespace {

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

// Runs $3... on a small disk mounted at $1, which only its processes see, then for 24 steps instead of 20: with the
// disk full, with 64 KiB free, whose outcome is copied to $2, and with space again.
constexpr const char* kOnSmallDisk = R"(
mount -t tmpfs -o size=4M tmpfs "$1" || exit 99
cd "$1" && kept=$2 && shift 2
fill_but() { rm -f fill; head -c $(($(df -k --output=avail . | tail -n 1) - $1))K /dev/zero >fill; }
further() { "${@/#20/24}"; echo "code $?"; }
"$@" >&2 || exit 98
fill_but 0; further "$@"
fill_but 64; further "$@"
cp -r out "$kept"
rm fill; further "$@"
)";

TEST_CASE("train: on a disk without space a run says so, keeps its checkpoint, and goes on when there is space again") {
  const TemporaryFolder folder;
  write_text(folder);
  const fs::path disk = folder.path() / "disk", kept = folder.path() / "kept";
  fs::create_directory(disk);
  const Outcome outcome = run(Strings{"unshare", "--user", "--map-root-user", "--mount", "bash", "-c", kOnSmallDisk,
                                      "bash", disk.string(), kept.string()} +
                              tiny_train(folder, "disk/out"));
  CAPTURE(outcome.out);
  CAPTURE(outcome.err);
  if (outcome.code != 0 && outcome.code != 98) {
    MESSAGE("not tried, because this system lets us mount nothing: " << outcome.err);
    return;
  }
  std::string codes;
  for (size_t at = 0; (at = outcome.out.find("code ", at)) != std::string::npos; ++at) codes += outcome.out[at + 5];
  CHECK(codes == "110");
  CHECK(contains(outcome.err, "cannot write: No space left on device"));
  CHECK(contains(outcome.err, "out/checkpoints: a checkpoint needs "));
  CHECK(newest_step(kept) == 20);
  CHECK(newest_good_checkpoint(kept / "checkpoints").rejected.empty());
  CHECK_FALSE(has_leftovers(kept));
  CHECK(contains(read_file(kept / "errors" / "rank-00000.json"), "a checkpoint needs "));
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

}  // namespace
}  // namespace lacuna

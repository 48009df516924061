#include "experiments/run_directory.h"

#include <unistd.h>

#include "core/file.h"
#include "experiments/environment.h"
#include "tests/support/expect_error.h"
#include "tests/support/temporary_folder.h"

namespace lacuna {
namespace fs = std::filesystem;
namespace {

TEST_CASE("run directory: makes its folders, and one run at a time holds it") {
  const TemporaryFolder folder;
  const fs::path out = folder.path() / "runs" / "a run";
  {
    const RunDirectory run(out);
    for (const char* name : {"samples", "checkpoints", "logs", "errors"}) CHECK(fs::is_directory(out / name));
    expect_error(concat("is in use by process ", ::getpid(), " on ", host_name()), [&] { RunDirectory again(out); });
  }
  CHECK_NOTHROW(RunDirectory{out});
}

TEST_CASE("run directory: removes what killed runs left, and nothing else") {
  const TemporaryFolder folder;
  for (const char* name : {"checkpoints/.tmp-step-00000001-7/model.safetensors", "checkpoints/.trash-step-00000002-7/x",
                           ".config.toml.123.0.tmp", "samples/.a.txt.9.1.tmp",
                           "checkpoints/step-00000003/model.safetensors", "notes.tmp", "samples/a.txt"})
    folder.write(name, "x");
  const RunDirectory run(folder.path());
  CHECK_FALSE(fs::exists(run.checkpoints() / ".tmp-step-00000001-7"));
  CHECK_FALSE(fs::exists(run.checkpoints() / ".trash-step-00000002-7"));
  CHECK_FALSE(fs::exists(folder.path() / ".config.toml.123.0.tmp"));
  CHECK_FALSE(fs::exists(run.samples() / ".a.txt.9.1.tmp"));
  CHECK(fs::exists(run.checkpoints() / "step-00000003" / "model.safetensors"));
  CHECK(fs::exists(folder.path() / "notes.tmp"));
  CHECK(fs::exists(run.samples() / "a.txt"));
}

TEST_CASE("run directory: a file in its place") {
  const TemporaryFolder folder;
  const fs::path file = folder.write("out", "x");
  expect_error("must be a folder, but a file is there", [&] { RunDirectory run(file); });
  expect_error("cannot create the folder", [&] { RunDirectory run(file / "inside"); });
  CHECK(read_file(file) == "x");
}

TEST_CASE("run directory: an earlier run is set aside, never deleted") {
  const TemporaryFolder folder;
  RunDirectory run(folder.path());
  CHECK(run.set_aside_previous_run().empty());
  for (int k = 1; k <= 2; ++k) {
    folder.write("checkpoints/step-00000005/model.safetensors", concat("run ", k));
    folder.write("metrics.jsonl", "{}\n");
    CHECK(run.set_aside_previous_run() == folder.path() / concat("previous-", k));
    CHECK(fs::is_empty(run.checkpoints()));
    CHECK_FALSE(fs::exists(run.metrics()));
    CHECK(read_file(folder.path() / concat("previous-", k) / "checkpoints/step-00000005/model.safetensors") ==
          concat("run ", k));
  }

  for (const char* name : {"step-00000001", "step-00000002", "step-00000010"})
    folder.write(concat("checkpoints/", name, "/x"), "");
  CHECK(run.set_aside_checkpoints_after(10).empty());
  CHECK(run.set_aside_checkpoints_after(1) == folder.path() / "previous-3");
  CHECK(fs::exists(run.checkpoints() / "step-00000001"));
  CHECK_FALSE(fs::exists(run.checkpoints() / "step-00000002"));
  CHECK(fs::exists(folder.path() / "previous-3" / "checkpoints" / "step-00000010" / "x"));
}

TEST_CASE("run directory: a failure is written down") {
  const TemporaryFolder folder;
  const RunDirectory run(folder.path());
  run.record_failure(12, "the loss is nan");
  const std::string record = read_file(folder.path() / "errors" / "rank-00000.json");
  CHECK(contains(record, "\"step\": 12"));
  CHECK(contains(record, "the loss is nan"));
}

}  // namespace
}  // namespace lacuna

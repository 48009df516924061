#include "experiments/run_state.h"

#include <cstring>

#include "core/archive.h"
#include "core/file.h"
#include "tests/experiments/tiny_run.h"
#include "tests/support/expect_error.h"

namespace lacuna {
namespace fs = std::filesystem;
namespace {

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.bytes() == b.bytes() && std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.bytes())) == 0;
}

const std::vector<std::string> kFiles{"model.safetensors", "ema.safetensors", "optimizer-00000-of-00001.safetensors",
                                      "train_state.json", "manifest.json"};

TEST_CASE("checkpoint: a run comes back bit for bit") {
  const TemporaryFolder folder;
  TinyRun saved(1), loaded(2);
  saved.state.best_step = 2;
  saved.state.best_bits_per_dim = 1.0 / 3.0;
  saved.state.updates = 2;
  saved.state.loss_scaler = {32768.0, 17};
  const fs::path checkpoint = save_checkpoint(folder.path(), saved.state, saved.tensors());
  CHECK(checkpoint == folder.path() / "step-00000003");
  for (const std::string& name : kFiles) CHECK_MESSAGE(fs::exists(checkpoint / name), name);
  CHECK(folder.count() == 1);

  const RunState state = verify_checkpoint(checkpoint);
  CHECK(state.step == 3);
  CHECK(state.best_step == 2);
  CHECK(state.best_bits_per_dim == 1.0 / 3.0);
  CHECK(state.data_fingerprint == "tiny");
  CHECK(state.updates == 2);
  CHECK(state.loss_scaler == saved.state.loss_scaler);
  CHECK(to_map(state.config) == to_map(saved.state.config));
  load_checkpoint(checkpoint, state, loaded.tensors());
  CHECK(same_bits(loaded.model.parameters().values(), saved.model.parameters().values()));
  CHECK(same_bits(loaded.adam.exp_avg(), saved.adam.exp_avg()));
  CHECK(same_bits(loaded.adam.exp_avg_sq(), saved.adam.exp_avg_sq()));
  CHECK(same_bits(loaded.ema.average(), saved.ema.average()));
  CHECK(loaded.adam.steps() == 2);
  CHECK(loaded.ema.updates() == 2);

  const Archive weights(checkpoint / "model.safetensors");
  CHECK(weights.contains("blocks.1.attention.out.weight"));
  CHECK(weights.metadata() == to_strings(saved.state.config.model));
}

TEST_CASE("checkpoint: what is loaded is rounded for the products too") {
  const TemporaryFolder folder;
  ExperimentConfig config = tiny_config();
  config.train.dtype = DType::bf16;
  TinyRun saved(1, config), loaded(2, config);
  const fs::path checkpoint = save_checkpoint(folder.path(), saved.state, saved.tensors());
  load_checkpoint(checkpoint, verify_checkpoint(checkpoint), loaded.tensors());
  CHECK(same_bits(loaded.model.parameters().rounded(), saved.model.parameters().rounded()));
}

TEST_CASE("checkpoint: saving a step again replaces it") {
  const TemporaryFolder folder;
  TinyRun run(1);
  save_checkpoint(folder.path(), run.state, run.tensors());
  run.state.best_step = 3;
  const fs::path checkpoint = save_checkpoint(folder.path(), run.state, run.tensors());
  CHECK(verify_checkpoint(checkpoint).best_step == 3);
  CHECK(folder.count() == 1);
}

TEST_CASE("checkpoint: any damage to any file is found and named") {
  const TemporaryFolder folder;
  TinyRun run(1);
  const fs::path checkpoint = save_checkpoint(folder.path(), run.state, run.tensors());
  for (const std::string& name : kFiles) {
    CAPTURE(name);
    const std::string good = read_file(checkpoint / name);
    const auto expect_found = [&](const std::string& bad) {
      write_file(checkpoint / name, bad);
      expect_error(checkpoint.string(), [&] { verify_checkpoint(checkpoint); });
      expect_error(name, [&] { verify_checkpoint(checkpoint); });
    };
    for (const size_t size : {size_t{0}, size_t{1}, good.size() / 2, good.size() - 2}) {
      CAPTURE(size);
      expect_found(good.substr(0, size));
    }
    expect_found(good + "x");
    for (size_t position = 0; position < good.size(); position += good.size() / 7 + 1) {
      CAPTURE(position);
      if (good[position] == ' ' || good[position] == '\n') continue;  // between the words of JSON
      std::string bad = good;
      bad[position] = static_cast<char>(bad[position] ^ 0x04);
      expect_found(bad);
    }
    fs::remove(checkpoint / name);
    expect_error(name + " is missing", [&] { verify_checkpoint(checkpoint); });
    write_file(checkpoint / name, good);
    CHECK_NOTHROW(verify_checkpoint(checkpoint));
  }
}

TEST_CASE("checkpoint: files of two runs, a wrong step, another format") {
  const TemporaryFolder folder, other;
  TinyRun a(1), b(2);
  const fs::path checkpoint = save_checkpoint(folder.path(), a.state, a.tensors());
  const fs::path stranger = save_checkpoint(other.path(), b.state, b.tensors());
  fs::copy_file(stranger / "model.safetensors", checkpoint / "model.safetensors", fs::copy_options::overwrite_existing);
  expect_error("model.safetensors is damaged", [&] { verify_checkpoint(checkpoint); });

  fs::rename(stranger, other.path() / "step-00000009");
  expect_error("another one", [&] { verify_checkpoint(other.path() / "step-00000009"); });

  write_file(checkpoint / "manifest.json", "{\"format\": 99}");
  expect_error("format must be 1, is 99", [&] { verify_checkpoint(checkpoint); });
  write_file(checkpoint / "manifest.json", "[]");
  expect_error("manifest.json", [&] { verify_checkpoint(checkpoint); });
  expect_error("no such checkpoint", [&] { verify_checkpoint(folder.path() / "step-00000004"); });
}

TEST_CASE("checkpoint: the newest good one is found, and why the others were not") {
  const TemporaryFolder folder;
  TinyRun run(1);
  for (const int64_t step : {1, 2, 3, 4}) {
    run.state.step = step;
    save_checkpoint(folder.path(), run.state, run.tensors());
  }
  fs::resize_file(folder.path() / "step-00000004" / "model.safetensors", 10);
  fs::remove(folder.path() / "step-00000003" / "manifest.json");
  fs::create_directory(folder.path() / "step-other");
  const FoundCheckpoint found = newest_good_checkpoint(folder.path());
  CHECK(found.path == folder.path() / "step-00000002");
  CHECK(found.state.step == 2);
  REQUIRE(found.rejected.size() == 2);
  CHECK(contains(found.rejected[0], "step-00000004: model.safetensors must have"));
  CHECK(contains(found.rejected[1], "step-00000003: manifest.json is missing"));
  CHECK(newest_good_checkpoint(folder.path() / "nowhere").path.empty());
}

TEST_CASE("checkpoint: pruning keeps the newest and the best") {
  const TemporaryFolder folder;
  for (const int64_t step : {1, 2, 3, 4, 5, 6}) folder.write(checkpoint_name(step) + "/x", "");
  prune_checkpoints(folder.path(), /*keep=*/2, /*best_step=*/3);
  std::vector<std::string> names;
  for (const fs::path& path : list_checkpoints(folder.path())) names.push_back(path.filename().string());
  CHECK(names == std::vector<std::string>{"step-00000006", "step-00000005", "step-00000003"});
  CHECK(folder.count() == 3);
}

TEST_CASE("checkpoint: a save that fails leaves nothing behind") {
  const TemporaryFolder folder;
  TinyRun run(1);
  const fs::path missing = folder.path() / "missing";
  CHECK_THROWS_AS(save_checkpoint(missing, run.state, run.tensors()), Error);
  CHECK_FALSE(fs::exists(missing));

  run.state.config.data_path = std::string("\xff");  // no UTF-8, so the state cannot be written as JSON
  CHECK_THROWS(save_checkpoint(folder.path(), run.state, run.tensors()));
  CHECK(folder.count() == 0);
}

TEST_CASE("checkpoint: weights fit a model exactly or not at all") {
  const TemporaryFolder folder;
  const TinyRun run(1);
  const fs::path file = folder.path() / "model.safetensors";
  save_weights(file, run.model);

  ExperimentConfig wider = tiny_config(), deeper = tiny_config(), shallower = tiny_config();
  wider.model.d_ff = 64;
  deeper.model.n_layers = 3;
  shallower.model.n_layers = 1;
  expect_error("blocks.0.ff.in.weight must have shape [64, 8], has [32, 8]",
               [&] { load_weights(file, TinyRun(1, wider).model); });
  expect_error("tensor blocks.2", [&] { load_weights(file, TinyRun(1, deeper).model); });
  expect_error("is none of this model's", [&] { load_weights(file, TinyRun(1, shallower).model); });
}

TEST_CASE("checkpoint: what --checkpoint may name") {
  const TemporaryFolder folder;
  TinyRun run(1);
  const fs::path checkpoint = save_checkpoint(folder.path() / "", run.state, run.tensors());
  CHECK(find_checkpoint(checkpoint, Weights::averaged, "enwik8").weights == checkpoint / "ema.safetensors");
  CHECK(find_checkpoint(checkpoint, Weights::last, "enwik8").weights == checkpoint / "model.safetensors");
  CHECK(find_checkpoint(checkpoint, Weights::last, "enwik8").state->step == 3);
  expect_error("is of the program enwik8, not cifar10", [&] { find_checkpoint(checkpoint, Weights::last, "cifar10"); });

  fs::create_directory(folder.path() / "checkpoints");
  expect_error("this run has no good checkpoint", [&] { find_checkpoint(folder.path(), Weights::last, "enwik8"); });
  fs::rename(checkpoint, folder.path() / "checkpoints" / "step-00000003");
  const fs::path moved = folder.path() / "checkpoints" / "step-00000003";
  CHECK(find_checkpoint(folder.path(), Weights::last, "enwik8").weights == moved / "model.safetensors");

  const CheckpointSource file = find_checkpoint(moved / "model.safetensors", Weights::averaged, "enwik8");
  CHECK(to_strings(file.config.model) == to_strings(run.state.config.model));
  CHECK_FALSE(file.state.has_value());

  expect_error("no such file or folder", [&] { find_checkpoint(folder.path() / "x", Weights::last, "enwik8"); });
  write_archive(folder.path() / "foreign.safetensors", {{"weight", zeros({2, 2}, DType::f32)}});
  expect_error("has no model configuration in its metadata",
               [&] { find_checkpoint(folder.path() / "foreign.safetensors", Weights::last, "enwik8"); });
  write_archive(folder.path() / "other.safetensors", {{"weight", zeros({2, 2}, DType::f32)}}, {{"format", "pt"}});
  expect_error("metadata: ", [&] { find_checkpoint(folder.path() / "other.safetensors", Weights::last, "enwik8"); });
  folder.write("text.safetensors", "not an archive");
  expect_error("text.safetensors",
               [&] { find_checkpoint(folder.path() / "text.safetensors", Weights::last, "enwik8"); });
}

TEST_CASE("checkpoint: which changes a resumed run may have") {
  ExperimentConfig now = tiny_config();
  now.model.d_model = 16;
  now.train.seed = 2;
  now.train.batch = 99;
  now.train.lr = 1.0;
  now.train.steps = 7;
  now.train.keep = 9;
  now.data_path = "elsewhere";
  CHECK(refused_differences(tiny_config(), now) ==
        std::vector<std::string>{"model.d_model: 8 -> 16", "train.batch: 16 -> 99", "train.seed: 1 -> 2"});
  CHECK(accepted_differences(tiny_config(), now) ==
        std::vector<std::string>{"train.steps: 1000 -> 7", "train.lr: 0.0005 -> 1.0"});
}

}  // namespace
}  // namespace lacuna

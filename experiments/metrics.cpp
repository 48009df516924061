#include "experiments/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <cmath>
#include <numbers>
#include <sstream>
#include <system_error>

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/file.h"

namespace lacuna {
namespace {

using Json = nlohmann::ordered_json;

// Not an object with a step: a line cut short by a kill, or not ours.
std::optional<Json> parse_line(const std::string& line) {
  Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) return std::nullopt;
  return json;
}

}  // namespace

MetricsFile::MetricsFile(const std::filesystem::path& path, int64_t resume_step) : path_(path) {
  if (std::filesystem::is_regular_file(path)) {
    std::istringstream old(read_file(path));
    std::string kept;
    for (std::string line; std::getline(old, line);) {
      const std::optional<Json> json = parse_line(line);
      if (json && (*json)["step"].get<int64_t>() <= resume_step) kept += line + "\n";
    }
    if (kept != old.str()) write_file(path, kept);
  }
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  check(fd_ >= 0, path.string(), ": cannot open for writing: ", std::generic_category().message(errno));
}

MetricsFile::~MetricsFile() { ::close(fd_); }

void MetricsFile::append(const std::string& line) {
  const ssize_t written = ::write(fd_, line.data(), line.size());
  check(written == static_cast<ssize_t>(line.size()), path_.string(),
        ": cannot write: ", written < 0 ? std::generic_category().message(errno) : "the disk is full");
}

void MetricsFile::write(const StepMetrics& m) {
  const Json json{{"step", m.step},
                  {"samples", m.samples},
                  {"tokens", m.tokens},
                  {"loss_nats", m.loss_nats},
                  {"bits_per_dim", m.loss_nats / std::numbers::ln2},
                  {"lr", m.lr},
                  {"grad_norm", m.grad_norm},
                  {"loss_scale", m.loss_scale},
                  {"step_ms", m.step_ms},
                  {"tokens_per_s", m.tokens_per_s},
                  {"mfu", nullptr},
                  {"memory_bytes", m.memory_bytes},
                  {"slower_than_dense", m.slower_than_dense}};
  append(json.dump() + "\n");
}

void MetricsFile::write(const EvalMetrics& m) {
  const Json json{
      {"step", m.step}, {"eval", m.split}, {"weights", m.weights}, {"bits_per_dim", m.bits_per_dim}, {"n", m.n}};
  append(json.dump() + "\n");
}

std::optional<EvalMetrics> MetricsFile::find(const std::string& split, const std::string& weights, int64_t step) const {
  std::istringstream lines(read_file(path_));
  for (std::string line; std::getline(lines, line);) {
    const std::optional<Json> json = parse_line(line);
    if (!json || (*json)["step"] != step || json->value("eval", "") != split) continue;
    if (json->value("weights", "") != weights) continue;
    return EvalMetrics{step, split, weights, json->value("bits_per_dim", 0.0), json->value("n", int64_t{0})};
  }
  return std::nullopt;
}

}  // namespace lacuna

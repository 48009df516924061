#include "experiments/environment.h"

#include <omp.h>
#include <unistd.h>

#include <array>
#include <ctime>
#include <fstream>

#include "core/cuda/runtime.h"
#include "core/error.h"
#include "experiments/parse.h"
#include "models/gpu_support.h"

namespace lacuna {

std::string version() {
  const std::string commit = LACUNA_COMMIT;
  return concat("lacuna ", LACUNA_VERSION, commit.empty() ? "" : " (", commit, commit.empty() ? "" : ")");
}

std::string host_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "unknown host";
}

std::string cpu_description() {
  std::string model = "unknown processor";
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    const size_t colon = line.find(": ");
    if (!line.starts_with("model name") || colon == std::string::npos) continue;
    model = line.substr(colon + 2);
    break;
  }
  return concat(model, ", ", threads(), threads() == 1 ? " thread" : " threads");
}

std::string why_no_gpu(const DeviceUse& use) {
  try {
    if (gpu::device_count() == 0) return gpu::why_no_device();
    check_gpu_computes(kCuda, use.model, use.dtype, use.training);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::string why_slow_on(Device device, const DeviceUse& use) {
  return device == kCpu ? "" : why_slow_on_gpu(use.model, use.dtype);
}

Device choose_device(const std::string& name, const DeviceUse& use) {
  if (name == "cpu") return kCpu;
  const std::string problem = why_no_gpu(use);
  check(name == "auto" || problem.empty(), "--device ", name, ": ", problem, "; use --device auto or cpu");
  return problem.empty() ? kCuda : kCpu;
}

std::string describe(Device device) {
  if (device == kCpu) return concat("cpu: ", cpu_description());
  const gpu::DeviceProperties& p = gpu::properties(device);
  return concat(device, ": ", p.name, ", ", format_bytes(p.memory_bytes), " (", gpu::versions(), ")");
}

std::string time_now() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  ::localtime_r(&now, &local);
  std::array<char, 64> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%S%z", &local);
  return text.data();
}

std::string quote_command(const std::vector<std::string>& arguments) {
  constexpr const char* kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=./:,@%+";
  std::string out;
  for (const std::string& argument : arguments) {
    if (!out.empty()) out += ' ';
    if (!argument.empty() && argument.find_first_not_of(kPlain) == std::string::npos) {
      out += argument;
      continue;
    }
    out += '\'';
    for (const char c : argument) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
    out += '\'';
  }
  return out;
}

void set_threads(int threads) {
  if (threads > 0) omp_set_num_threads(threads);
}

int threads() { return omp_get_max_threads(); }

}  // namespace lacuna

#pragma once
// Where a run runs.

#include <string>
#include <vector>

#include "core/device.h"
#include "core/dtype.h"
#include "models/config.h"

namespace lacuna {

/// "lacuna 0.1.0 (1a2b3c4)": the version and, of a build from a repository, its commit at configure time.
std::string version();

std::string host_name();

/// The processor's name and number of threads that OpenMP uses: "AMD EPYC 9654, 2 threads".
std::string cpu_description();

/// What a device is for.
struct DeviceUse {
  const ModelConfig& model;
  DType dtype = DType::f32;
  bool training = false;
};

/// Why no GPU can be used so here, on one line; "" if one can.
std::string why_no_gpu(const DeviceUse& use);

/// What makes this much slower on the device than it could be, on one line; "" if nothing does.
std::string why_slow_on(Device device, const DeviceUse& use);

/// The device that --device names: cpu, cuda, or auto, which is a GPU when one can be used. Throws Error with the
/// reason on one line when cuda is asked for and cannot be had.
Device choose_device(const std::string& name, const DeviceUse& use);

/// "cpu: AMD EPYC 9654, 2 threads", "cuda:0: NVIDIA H200, 141 GiB (CUDA runtime 13.0, driver 13.0)".
std::string describe(Device device);

/// Local time, ISO 8601 with offset.
std::string time_now();

/// The command line as a shell reads it.
std::string quote_command(const std::vector<std::string>& arguments);

/// Threads of everything that computes; 0 leaves the default.
void set_threads(int threads);
int threads();

}  // namespace lacuna

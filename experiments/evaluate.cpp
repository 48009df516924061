#include "experiments/evaluate.h"

#include <algorithm>
#include <cstring>
#include <numbers>
#include <vector>

#include "core/error.h"
#include "ops/softmax_cross_entropy/softmax_cross_entropy.h"
#include "ops/tokens.h"

namespace lacuna {
namespace {

constexpr int64_t kTokensPerPass = 8192;

/// A sequence to run, and its first token that counts.
struct Window {
  std::string_view tokens;
  int64_t first_scored = 0;
};

// Windows that slide over a text.
std::vector<Window> sliding_windows(std::string_view bytes, int64_t n_ctx, int64_t min_context) {
  std::vector<Window> windows;
  const auto size = static_cast<int64_t>(bytes.size());
  for (int64_t scored = 0; scored < size;) {
    const int64_t begin = std::max<int64_t>(0, scored - min_context);
    const int64_t end = std::min(begin + n_ctx, size);
    windows.push_back({bytes.substr(static_cast<size_t>(begin), static_cast<size_t>(end - begin)), scored - begin});
    scored = end;
  }
  return windows;
}

// Sum of the losses in nats of `count` windows of one length.
double summed_loss(const SparseTransformer& model, const Window* windows, int64_t count, std::vector<uint8_t>& buffer) {
  const auto length = static_cast<int64_t>(windows[0].tokens.size());
  buffer.resize(static_cast<size_t>(count * length));
  for (int64_t i = 0; i < count; ++i)
    std::memcpy(buffer.data() + i * length, windows[i].tokens.data(), static_cast<size_t>(length));
  const Tensor host = from_vector(buffer, {count, length});
  check_tokens("evaluate", "tokens", host, model.config().n_vocab);
  const Tensor tokens = to_device(host, model.parameters().values().device());
  const std::vector<double> losses =
      to_vector<double>(to_dtype(cross_entropy_per_row(model(tokens, Run{}).value(), tokens), DType::f64));
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t t = windows[i].first_scored; t < length; ++t) sum += losses[static_cast<size_t>(i * length + t)];
  return sum;
}

}  // namespace

Evaluation evaluate(const SparseTransformer& model, const Dataset& data, const EvaluationOptions& options) {
  const int64_t n_ctx = model.config().n_ctx;
  const std::string_view bytes = data.bytes(options.split);
  std::vector<Tensor> storage;  // keeps the bytes of the windows
  std::vector<Window> windows;
  if (options.min_context) {
    check_usage(*options.min_context < n_ctx, "--min-context must be from 0 to n_ctx - 1 = ", n_ctx - 1, ", got ",
                *options.min_context);
    windows = sliding_windows(bytes, n_ctx, *options.min_context);
  }
  const int64_t available = options.min_context ? static_cast<int64_t>(windows.size()) : data.n_windows(options.split);
  const int64_t total = options.windows > 0 ? std::min(options.windows, available) : available;
  const int64_t per_pass = std::max<int64_t>(1, kTokensPerPass / n_ctx);

  const GradientMode no_gradients(false);
  std::vector<uint8_t> buffer;
  double nats = 0.0;
  int64_t scored = 0;
  for (int64_t done = 0; done < total;) {
    std::vector<Window> pass;
    storage.clear();
    while (done + static_cast<int64_t>(pass.size()) < total && static_cast<int64_t>(pass.size()) < per_pass) {
      const int64_t index = done + static_cast<int64_t>(pass.size());
      Window window;
      if (options.min_context) {
        window = windows[static_cast<size_t>(index)];
      } else {
        storage.push_back(data.window(options.split, index));
        const Tensor& t = storage.back();
        window.tokens = {reinterpret_cast<const char*>(t.data<uint8_t>()), static_cast<size_t>(t.numel())};
      }
      if (!pass.empty() && pass.front().tokens.size() != window.tokens.size()) break;
      pass.push_back(window);
    }
    nats += summed_loss(model, pass.data(), static_cast<int64_t>(pass.size()), buffer);
    for (const Window& window : pass) scored += static_cast<int64_t>(window.tokens.size()) - window.first_scored;
    done += static_cast<int64_t>(pass.size());
    if (options.progress) options.progress(done, total);
  }
  check(scored > 0, "evaluate: the ", name_of(options.split), " split is empty");
  return {nats / static_cast<double>(scored) / std::numbers::ln2, scored};
}

}  // namespace lacuna

#pragma once
// Updates of flat buffers, one signature for every device. Buffers hold f32 or f64 (on a GPU f32), all alike.

#include <cmath>

#include "core/dispatch.h"
#include "core/rng.h"  // LACUNA_HOST_DEVICE
#include "core/tensor.h"

namespace lacuna {

/// The factors of one Adam step.
struct AdamFactors {
  double scale = 1.0;     // of the gradient
  double max_norm = 0.0;  // then clipped to this norm, where the buffers have a sum of squares
  double beta1 = 0.0, beta2 = 0.0, eps = 0.0;
  double lr = 0.0;
  double correction1 = 1.0;  // 1 - beta1^t
  double correction2 = 1.0;  // 1 - beta2^t
  double weight_decay = 0.0;
  double ema_decay = 0.0;
};

/// What it reads and writes, all of one size but for `pieces` and `sum_of_squares`.
struct AdamBuffers {
  Tensor pieces;          // i64 [n, 3]: begin, count and whether weight decay acts, on the buffers' device
  Tensor gradients, values, exp_avg, exp_avg_sq;
  Tensor sum_of_squares;  // f64 [1], of `gradients`; undefined: no clipping. When not finite nothing is updated
  Tensor average;         // moving average of the values, or undefined
  Tensor rounded;         // gets the values in bf16 or f16; or undefined
};

/// The factor of gradients with this sum of squares: scale, or less, so that their norm is at most max_norm after it;
/// 0, which no other case gives, when the sum is not finite.
LACUNA_HOST_DEVICE inline double clipped_scale(const AdamFactors& factors, double sum_of_squares) {
  if (!(sum_of_squares < INFINITY)) return 0.0;
  const double norm = sqrt(sum_of_squares) * factors.scale;
  return factors.scale * (norm > factors.max_norm ? factors.max_norm / norm : 1.0);
}

/// Elements that one thread of the CPU or one block of a GPU updates or sums, so that the order of the work is a fact of
/// the model.
inline constexpr int64_t kPieceSize = 32768;

/// One step of Adam on every piece, as optim/adam.h says, then average += (1 - ema_decay) (value - average).
LACUNA_KERNEL(void adam_update(Stream stream, const AdamFactors& factors, const AdamBuffers& buffers))

/// sum [1] f64 = the sum of squares of x: one sum per kPieceSize elements, then a tree over those.
LACUNA_KERNEL(void sum_of_squares(Stream stream, const Tensor& x, const Tensor& sum))

/// average += (1 - decay) (x - average).
LACUNA_KERNEL(void average_update(Stream stream, double decay, const Tensor& x, const Tensor& average))

/// Exchanges the elements of a and b.
LACUNA_KERNEL(void exchange(Stream stream, const Tensor& a, const Tensor& b))

}  // namespace lacuna

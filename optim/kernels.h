#pragma once
// Updates of flat buffers, one signature for every device. Buffers hold f32 or f64, all alike.

#include <vector>

#include "core/device.h"
#include "core/tensor.h"
#include "optim/pieces.h"

namespace lacuna {

/// The factors of one Adam step.
struct AdamFactors {
  double scale = 1.0;  // of the gradient
  double beta1 = 0.0, beta2 = 0.0, eps = 0.0;
  double lr = 0.0;
  double correction1 = 1.0;  // 1 - beta1^t
  double correction2 = 1.0;  // 1 - beta2^t
  double weight_decay = 0.0;
};

namespace cpu {

/// One step of Adam on every piece, as optim/adam.h says.
void adam_update(Stream, const std::vector<Piece>& pieces, const AdamFactors& factors, const Tensor& gradients,
                 const Tensor& values, const Tensor& exp_avg, const Tensor& exp_avg_sq);

/// The sum of squares of x in f64: one sum per kPieceSize elements, then a tree over those.
void sum_of_squares(Stream, const Tensor& x, double& sum);

/// average += (1 - decay) (x - average).
void average_update(Stream, double decay, const Tensor& x, const Tensor& average);

/// Exchanges the elements of a and b.
void exchange(Stream, const Tensor& a, const Tensor& b);

}  // namespace cpu
}  // namespace lacuna

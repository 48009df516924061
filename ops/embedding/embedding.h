#pragma once
// From tokens to vectors.

#include <optional>
#include <vector>

#include "autograd/variable.h"

namespace lacuna {

/// The input of the first layer: the sum of a token's vector and those of its position, shifted right by one.
///
///   h[b, 0] = start
///   h[b, t] = token[x[b, t-1]] + sum over tables p of position[p][coordinate p of t-1]        t >= 1
///
/// The coordinates of a position are its digits in the mixed radix of the tables' extents, the last one fastest:
/// (row, column, channel) of an image, (row, column) of a text laid out in rows.
///
///   tokens    [batch, n_ctx]     u8, each below n_vocab
///   token     [n_vocab, d_model] f32 or f64; on a GPU f32
///   position  tables [extent, d_model], at least one; product of the extents >= n_ctx
///   start     [d_model]
///   h         [batch, n_ctx, d_model], of `dtype`: by default that of the tables, or bf16 or f16 beside f32 tables
///
/// Throws Error when shapes, dtypes or devices disagree or a token is out of range.
/// Source: Sec. 5.3, eq. 15; the shift after the addition follows the authors' distribution_augmentation code.
Variable embedding(const Tensor& tokens, const Variable& token, const std::vector<Variable>& position,
                   const Variable& start, std::optional<DType> dtype = {});

/// Row *position of that h alone, without gradients: [batch, d_model], of the tables' dtype.
///
///   previous  [batch]  u8, the tokens just before; not looked at when *position is 0
///   position  [1]      i64, on the device: kernels that are recorded once can be replayed at the next position
Tensor embedding_at(const Tensor& previous, const Tensor& position, const Tensor& token,
                    const std::vector<Tensor>& tables, const Tensor& start);

}  // namespace lacuna

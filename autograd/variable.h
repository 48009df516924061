#pragma once
// Reverse-mode automatic differentiation: values that remember how they were made.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace lacuna {

class Variable;
struct GradientLink;

/// The gradients that a node's backward returns: one per input, in the order of the inputs. An undefined Tensor says
/// that an input has none, or that its gradient has been added to `Needs::accumulator` already.
using Grads = std::vector<Tensor>;

/// What backward is asked for.
class Needs {
 public:
  /// Whether anybody reads the gradient of input `i`; when not, backward may skip its computation.
  bool wants(size_t i) const;

  /// Where the gradient of input `i` may be added instead of returned: the gradient buffer of a parameter. Undefined
  /// for any other input. Used by operations whose gradient is dear to copy, such as the weight of a linear layer.
  Tensor accumulator(size_t i) const;

 private:
  friend void backward(const Variable& root, const Tensor& seed);
  explicit Needs(const std::vector<std::shared_ptr<GradientLink>>& inputs) : inputs_(inputs) {}
  const std::vector<std::shared_ptr<GradientLink>>& inputs_;
};

/// The backward pass of one operation: the gradients of the loss in its inputs, from the gradient `dy` in its output.
using Backward = std::function<Grads(const Tensor& dy, const Needs& needs)>;

/// The same of an operation with several outputs: `dys` has a gradient for each, undefined where nobody read the
/// output.
using BackwardOfSeveral = std::function<Grads(const Grads& dys, const Needs& needs)>;

/// A tensor, the node of the graph that made it, and, for a leaf, its gradient. A Variable is a handle: copies are the
/// same variable. The graph itself holds no values but those that backward functions captured. Default-constructed it
/// is undefined.
class Variable {
 public:
  Variable() = default;

  /// A leaf. With `requires_grad`, backward() accumulates into its gradient.
  explicit Variable(Tensor value, bool requires_grad = false);

  /// A leaf whose gradient is accumulated in `grad`, a view of a larger buffer that the caller clears.
  Variable(Tensor value, Tensor grad);

  bool defined() const { return link_ != nullptr; }
  const Tensor& value() const {
    check(defined(), "Variable: undefined");
    return value_;
  }

  /// What products with activations of `dtype` read: the copy that is kept in that dtype, or else the value.
  const Tensor& value_for(DType dtype) const;

  /// Keeps a copy of the value, rounded to another dtype. Whoever writes the value writes the copy.
  void keep_rounded(Tensor copy) const;

  const Shape& shape() const { return value().shape(); }
  int64_t dim(int64_t i) const { return value().dim(i); }
  int64_t numel() const { return value().numel(); }
  DType dtype() const { return value().dtype(); }
  Device device() const { return value().device(); }
  bool requires_grad() const;

  /// The accumulated gradient of a leaf. Throws Error when this is no leaf that requires one, or when no backward
  /// pass has reached it yet.
  const Tensor& grad() const;
  bool has_grad() const;

  /// Forgets the gradient of a leaf; one that views a larger buffer is filled with zeros instead.
  void clear_grad() const;

  /// The same value as a leaf that requires no gradient.
  Variable detach() const { return Variable(value()); }

 private:
  friend std::vector<Variable> record_several(const char* op, std::vector<Tensor> ys,
                                              const std::vector<Variable>& inputs, BackwardOfSeveral backward);
  friend void backward(const Variable& root, const Tensor& seed);

  Tensor value_;
  std::shared_ptr<GradientLink> link_;  // what the graph knows of this variable
};

/// Whether operations on this thread record how to differentiate them. On by default.
bool gradients_enabled();

/// While alive, operations on this thread record nothing (or record again, with `enabled` true).
class GradientMode {
 public:
  explicit GradientMode(bool enabled);
  ~GradientMode();
  GradientMode(const GradientMode&) = delete;
  GradientMode& operator=(const GradientMode&) = delete;

 private:
  bool previous_;
};

/// The result of an operation: `y`, and `backward` to differentiate it if gradients are enabled and an input requires
/// one. `backward` should capture only what it reads; it is dropped when it has run.
Variable record(const char* op, Tensor y, const std::vector<Variable>& inputs, Backward backward);

/// The results of an operation with several. Their gradients reach `backward` together, when all have arrived.
std::vector<Variable> record_several(const char* op, std::vector<Tensor> ys, const std::vector<Variable>& inputs,
                                     BackwardOfSeveral backward);

/// Adds the gradient of `root` (contracted with `seed`, of root's shape and dtype) to every leaf that it was made from,
/// and frees the graph. Nodes run in the reverse order of their creation, so sums have one order in every run.
/// Throws Error when `root` requires no gradient, when the graph was freed by an earlier backward, or when shapes or
/// dtypes of a gradient disagree with its value.
void backward(const Variable& root, const Tensor& seed);

/// backward() of a single number, with seed 1. Throws Error unless `root` has exactly one element.
void backward(const Variable& root);

/// Throws Error unless all defined variables have one dtype and device. The first must be defined.
void check_same_dtype_and_device(const char* op, std::initializer_list<Variable> variables);

/// Throws Error unless all defined parameters are on the device of the activation x and have its dtype, or f32 where x
/// is bf16 or f16.
void check_parameters(const char* op, const Variable& x, std::initializer_list<Variable> parameters);

}  // namespace lacuna

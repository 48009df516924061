#include "autograd/checkpoint.h"

namespace lacuna {

Variable checkpoint(std::function<Variable(const std::vector<Variable>&)> fn, std::vector<Variable> inputs) {
  if (!gradients_enabled()) return fn(inputs);

  Tensor y = [&] {
    const GradientMode off(false);
    return fn(inputs).value();
  }();

  std::vector<Tensor> values;  // not the variables: a chain of nested captures would be destroyed by recursion
  for (const Variable& input : inputs) values.push_back(input.value());
  auto backward = [fn = std::move(fn), values = std::move(values)](const Tensor& dy, const Needs& needs) {
    // The inputs again, as leaves: the graph of the recomputation ends at them.
    std::vector<Variable> leaves;
    for (size_t i = 0; i < values.size(); ++i) leaves.emplace_back(values[i], needs.wants(i));
    const GradientMode on(true);
    const Variable again = fn(leaves);
    if (again.requires_grad()) lacuna::backward(again, dy);

    Grads grads;
    for (const Variable& leaf : leaves) grads.push_back(leaf.has_grad() ? leaf.grad() : Tensor());
    grads.emplace_back();  // of the marker below
    return grads;
  };

  // `fn` may capture parameters even when no input requires a gradient: an empty leaf that does marks the result.
  inputs.emplace_back(empty(Shape{0}, y.dtype(), y.device()), /*requires_grad=*/true);
  return record("checkpoint", std::move(y), std::move(inputs), std::move(backward));
}

Variable checkpoint(std::function<Variable(const Variable&)> fn, const Variable& input) {
  return checkpoint([fn = std::move(fn)](const std::vector<Variable>& inputs) { return fn(inputs[0]); },
                    std::vector<Variable>{input});
}

}  // namespace lacuna

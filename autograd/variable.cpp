#include "autograd/variable.h"

#include <algorithm>
#include <atomic>
#include <map>

namespace lacuna {
namespace {

thread_local bool t_gradients_enabled = true;

/// A gradient that arrives in several parts. The first part may be shared with whoever made it, so the sum is only
/// written in place once it has storage of its own.
struct Sum {
  Tensor tensor;
  bool owned = false;

  void add(const Tensor& part) {
    if (!tensor.defined()) {
      tensor = part;
      return;
    }
    if (!owned) {
      tensor = clone(tensor);
      owned = true;
    }
    add_in_place(tensor, part);
  }
};

}  // namespace

/// How a value was made. Freed nodes keep their name, for the message of a second backward.
struct Variable::Node {
  std::string op;
  std::vector<Variable> inputs;
  Backward backward;
  uint64_t order = 0;  // of creation
  bool freed = false;

  ~Node();
};

struct Variable::State {
  Tensor value;
  bool requires_grad = false;
  bool grad_is_view = false;   // the gradient is a piece of a larger buffer
  Sum grad;                    // of a leaf
  std::shared_ptr<Node> node;  // of what an operation made
};

/// Takes a chain of nodes apart in a loop: the recursion of nested destructors would exhaust the stack of a long one.
Variable::Node::~Node() {
  std::vector<Variable> doomed = std::move(inputs);
  while (!doomed.empty()) {
    const Variable last = std::move(doomed.back());
    doomed.pop_back();
    if (!last.state_ || last.state_.use_count() > 1 || !last.state_->node || last.state_->node.use_count() > 1) continue;
    std::vector<Variable>& next = last.state_->node->inputs;
    std::move(next.begin(), next.end(), std::back_inserter(doomed));
    next.clear();
  }
}

bool Needs::wants(size_t i) const { return inputs_[i].defined() && inputs_[i].requires_grad(); }

Tensor Needs::accumulator(size_t i) const {
  if (!wants(i) || !inputs_[i].state_->grad_is_view) return {};
  return inputs_[i].state_->grad.tensor;
}

Variable::Variable(Tensor value, bool requires_grad) : state_(std::make_shared<State>()) {
  check(value.defined(), "Variable: needs a defined tensor");
  check(!requires_grad || is_floating(value.dtype()), "Variable: only floating tensors have gradients, got ",
        value.dtype());
  state_->value = std::move(value);
  state_->requires_grad = requires_grad;
}

Variable::Variable(Tensor value, Tensor grad) : Variable(std::move(value), true) {
  check(grad.shape() == shape() && grad.dtype() == dtype() && grad.device() == device(), "Variable: gradient must be ",
        dtype(), ' ', shape(), " on ", device(), ", got ", grad.dtype(), ' ', grad.shape(), " on ", grad.device());
  state_->grad = {std::move(grad), true};
  state_->grad_is_view = true;
}

const Tensor& Variable::value() const {
  check(defined(), "Variable: undefined");
  return state_->value;
}

bool Variable::requires_grad() const {
  check(defined(), "Variable: undefined");
  return state_->requires_grad;
}

bool Variable::has_grad() const { return defined() && state_->grad.tensor.defined(); }

const Tensor& Variable::grad() const {
  check(requires_grad(), "grad: ", dtype(), ' ', shape(), " does not require a gradient");
  check(!state_->node, "grad: only leaves keep a gradient, this is the result of ",
        state_->node ? state_->node->op : std::string());
  check(has_grad(), "grad: no backward pass has reached this leaf ", shape());
  return state_->grad.tensor;
}

void Variable::clear_grad() const {
  check(requires_grad(), "clear_grad: ", dtype(), ' ', shape(), " does not require a gradient");
  if (state_->grad_is_view)
    fill(state_->grad.tensor, 0.0);
  else
    state_->grad = {};
}

bool gradients_enabled() { return t_gradients_enabled; }

GradientMode::GradientMode(bool enabled) : previous_(t_gradients_enabled) { t_gradients_enabled = enabled; }
GradientMode::~GradientMode() { t_gradients_enabled = previous_; }

Variable record(const char* op, Tensor y, std::vector<Variable> inputs, Backward backward) {
  static std::atomic<uint64_t> created{0};
  Variable result(std::move(y));
  const bool needed = gradients_enabled() && std::any_of(inputs.begin(), inputs.end(), [](const Variable& v) {
                        return v.defined() && v.requires_grad();
                      });
  if (!needed) return result;
  auto node = std::make_shared<Variable::Node>();
  node->op = op;
  node->inputs = std::move(inputs);
  node->backward = std::move(backward);
  node->order = created++;
  result.state_->requires_grad = true;
  result.state_->node = std::move(node);
  return result;
}

void backward(const Variable& root, const Tensor& seed) {
  check(root.requires_grad(), "backward: the root ", root.shape(), " requires no gradient");
  check(seed.shape() == root.shape() && seed.dtype() == root.dtype(), "backward: seed must be ", root.dtype(), ' ',
        root.shape(), " like the root, got ", seed.dtype(), ' ', seed.shape());

  // Nodes that wait for their gradient, the youngest first: whoever uses a value is younger than its maker, so a node
  // runs when all parts of its gradient have arrived.
  struct Waiting {
    std::shared_ptr<Variable::Node> node;
    Sum dy;
  };
  std::map<uint64_t, Waiting, std::greater<>> waiting;

  const auto deliver = [&waiting](const Variable& v, const Tensor& part) {
    if (!v.state_->node) {
      v.state_->grad.add(part);
      return;
    }
    Waiting& w = waiting[v.state_->node->order];
    w.node = v.state_->node;
    w.dy.add(part);
  };

  deliver(root, seed);
  while (!waiting.empty()) {
    const Waiting next = std::move(waiting.begin()->second);
    waiting.erase(waiting.begin());
    Variable::Node& node = *next.node;
    check(!node.freed, "backward: the graph of ", node.op,
          " was freed by an earlier backward; run the forward pass again");

    // The node is freed before its inputs' makers run, so memory falls as backward goes.
    const std::vector<Variable> inputs = std::move(node.inputs);
    const Backward run = std::move(node.backward);
    node.inputs.clear();
    node.backward = nullptr;
    node.freed = true;

    const Grads grads = run(next.dy.tensor, Needs(inputs));
    check(grads.size() == inputs.size(), node.op, ": backward returned ", grads.size(), " gradients for ",
          inputs.size(), " inputs");
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!grads[i].defined() || !inputs[i].defined() || !inputs[i].requires_grad()) continue;
      check(grads[i].shape() == inputs[i].shape() && grads[i].dtype() == inputs[i].dtype(), node.op,
            ": gradient of input ", i, " must be ", inputs[i].dtype(), ' ', inputs[i].shape(), ", got ",
            grads[i].dtype(), ' ', grads[i].shape());
      deliver(inputs[i], grads[i]);
    }
  }
}

void backward(const Variable& root) {
  check(root.numel() == 1, "backward: without a seed the root must have one element, got ", root.shape());
  backward(root, full(root.shape(), root.dtype(), 1.0, root.device()));
}

void check_same_dtype_and_device(const char* op, std::initializer_list<Variable> variables) {
  const Variable& first = *variables.begin();
  for (const Variable& v : variables)
    check(!v.defined() || (v.dtype() == first.dtype() && v.device() == first.device()), op,
          ": all inputs must be alike, got ", first.dtype(), " on ", first.device(), " and ", v.dtype(), " on ",
          v.device());
}

}  // namespace lacuna

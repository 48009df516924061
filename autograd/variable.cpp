#include "autograd/variable.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <utility>

namespace lacuna {
namespace {

thread_local bool t_gradients_enabled = true;

/// A gradient that arrives in several parts. The first part may be shared with whoever made it, so it is never written;
/// from the second on, the sum has storage of its own.
struct Sum {
  Tensor tensor;
  bool owned = false;

  void add(const Tensor& part) {
    if (!tensor.defined())
      tensor = part;
    else if (owned)
      add_in_place(tensor, part);
    else
      tensor = sum_of(tensor, part);
    owned = owned || tensor.raw() != part.raw();
  }
};

struct Node;

}  // namespace

/// What the graph knows of a variable.
struct GradientLink {
  Shape shape;
  DType dtype;
  bool requires_grad = false;
  bool grad_is_view = false;   // the gradient is a piece of a larger buffer
  Sum grad;                    // of a leaf
  Tensor rounded;              // copy of a leaf's value, if one is kept
  std::shared_ptr<Node> node;  // of what an operation made
  size_t output = 0;           // which of the node's outputs
};

namespace {

using Links = std::vector<std::shared_ptr<GradientLink>>;

/// How a variable was made. Freed nodes keep their name, for the message of a second backward.
struct Node {
  std::string op;
  Links inputs;  // null where the operation had no such input
  size_t outputs = 0;
  BackwardOfSeveral backward;
  uint64_t order = 0;  // of creation
  bool freed = false;

  /// Takes a chain of nodes apart in a loop: the recursion of nested destructors would exhaust the stack of a long one.
  ~Node() {
    Links doomed = std::move(inputs);
    while (!doomed.empty()) {
      const std::shared_ptr<GradientLink> last = std::move(doomed.back());
      doomed.pop_back();
      if (!last || last.use_count() > 1 || !last->node || last->node.use_count() > 1) continue;
      std::move(last->node->inputs.begin(), last->node->inputs.end(), std::back_inserter(doomed));
      last->node->inputs.clear();
    }
  }
};

}  // namespace

bool Needs::wants(size_t i) const { return inputs_[i] && inputs_[i]->requires_grad; }

Tensor Needs::accumulator(size_t i) const {
  if (!wants(i) || !inputs_[i]->grad_is_view) return {};
  return inputs_[i]->grad.tensor;
}

Variable::Variable(Tensor value, bool requires_grad) : value_(std::move(value)) {
  check(value_.defined(), "Variable: needs a defined tensor");
  check(!requires_grad || is_floating(value_.dtype()), "Variable: only floating tensors have gradients, got ",
        value_.dtype());
  link_ = std::make_shared<GradientLink>();
  link_->shape = value_.shape();
  link_->dtype = value_.dtype();
  link_->requires_grad = requires_grad;
}

Variable::Variable(Tensor value, Tensor grad) : Variable(std::move(value), true) {
  check(grad.shape() == shape() && grad.dtype() == dtype() && grad.device() == device(), "Variable: gradient must be ",
        dtype(), ' ', shape(), " on ", device(), ", got ", grad.dtype(), ' ', grad.shape(), " on ", grad.device());
  link_->grad = {std::move(grad), true};
  link_->grad_is_view = true;
}

const Tensor& Variable::value_for(DType dtype) const {
  check(defined(), "Variable: undefined");
  return link_->rounded.defined() && link_->rounded.dtype() == dtype ? link_->rounded : value_;
}

void Variable::keep_rounded(Tensor copy) const {
  check(copy.shape() == shape() && copy.device() == device(), "Variable: the copy must be ", shape(), " on ", device(),
        ", got ", copy.shape(), " on ", copy.device());
  link_->rounded = std::move(copy);
}

bool Variable::requires_grad() const {
  check(defined(), "Variable: undefined");
  return link_->requires_grad;
}

bool Variable::has_grad() const { return defined() && link_->grad.tensor.defined(); }

const Tensor& Variable::grad() const {
  check(requires_grad(), "grad: ", dtype(), ' ', shape(), " does not require a gradient");
  check(!link_->node, "grad: only leaves keep a gradient, this is the result of ",
        link_->node ? link_->node->op : std::string());
  check(has_grad(), "grad: no backward pass has reached this leaf ", shape());
  return link_->grad.tensor;
}

void Variable::clear_grad() const {
  check(requires_grad(), "clear_grad: ", dtype(), ' ', shape(), " does not require a gradient");
  if (link_->grad_is_view)
    fill(link_->grad.tensor, 0.0);
  else
    link_->grad = {};
}

bool gradients_enabled() { return t_gradients_enabled; }

GradientMode::GradientMode(bool enabled) : previous_(t_gradients_enabled) { t_gradients_enabled = enabled; }
GradientMode::~GradientMode() { t_gradients_enabled = previous_; }

Variable record(const char* op, Tensor y, const std::vector<Variable>& inputs, Backward backward) {
  auto of_one = [backward = std::move(backward)](const Grads& dys, const Needs& needs) {
    return backward(dys[0], needs);
  };
  return record_several(op, {std::move(y)}, inputs, std::move(of_one))[0];
}

std::vector<Variable> record_several(const char* op, std::vector<Tensor> ys, const std::vector<Variable>& inputs,
                                     BackwardOfSeveral backward) {
  static std::atomic<uint64_t> created{0};
  std::vector<Variable> results;
  for (Tensor& y : ys) results.emplace_back(std::move(y));
  const bool needed = gradients_enabled() && std::any_of(inputs.begin(), inputs.end(), [](const Variable& v) {
                        return v.defined() && v.requires_grad();
                      });
  if (!needed) return results;
  auto node = std::make_shared<Node>();
  node->op = op;
  for (const Variable& input : inputs) node->inputs.push_back(input.link_);
  node->outputs = results.size();
  node->backward = std::move(backward);
  node->order = created++;
  for (size_t i = 0; i < results.size(); ++i) {
    GradientLink& link = *results[i].link_;
    link.requires_grad = true;
    link.node = node;
    link.output = i;
  }
  return results;
}

void backward(const Variable& root, const Tensor& seed) {
  check(root.requires_grad(), "backward: the root ", root.shape(), " requires no gradient");
  check(seed.shape() == root.shape() && seed.dtype() == root.dtype() && seed.device() == root.device(),
        "backward: seed must be ", root.dtype(), ' ', root.shape(), " on ", root.device(), " like the root, got ",
        seed.dtype(), ' ', seed.shape(), " on ", seed.device());

  // Nodes that wait for their gradient, the youngest first: whoever uses a value is younger than its maker, so a node
  // runs when all parts of its gradient have arrived.
  struct Waiting {
    std::shared_ptr<Node> node;
    std::vector<Sum> dys;  // of its outputs
  };
  std::map<uint64_t, Waiting, std::greater<>> waiting;

  const auto deliver = [&waiting](GradientLink& to, const Tensor& part) {
    if (!to.node) {
      to.grad.add(part);
      return;
    }
    Waiting& w = waiting[to.node->order];
    w.node = to.node;
    w.dys.resize(to.node->outputs);
    w.dys[to.output].add(part);
  };

  deliver(*root.link_, seed);
  while (!waiting.empty()) {
    Waiting next = std::move(waiting.begin()->second);
    waiting.erase(waiting.begin());
    Node& node = *next.node;
    check(!node.freed, "backward: the graph of ", node.op,
          " was freed by an earlier backward; run the forward pass again");

    // What the node captured is freed before its inputs' makers run, so memory falls as backward goes.
    const Links inputs = std::move(node.inputs);
    node.inputs.clear();
    node.freed = true;
    Grads dys;
    for (Sum& dy : next.dys) dys.push_back(std::move(dy.tensor));
    const Grads grads = std::exchange(node.backward, nullptr)(dys, Needs(inputs));

    check(grads.size() == inputs.size(), node.op, ": backward returned ", grads.size(), " gradients for ",
          inputs.size(), " inputs");
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!grads[i].defined() || !inputs[i] || !inputs[i]->requires_grad) continue;
      const GradientLink& input = *inputs[i];
      check(grads[i].shape() == input.shape && grads[i].dtype() == input.dtype, node.op, ": gradient of input ", i,
            " must be ", input.dtype, ' ', input.shape, ", got ", grads[i].dtype(), ' ', grads[i].shape());
      deliver(*inputs[i], grads[i]);
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
    if (v.defined())
      check(v.dtype() == first.dtype() && v.device() == first.device(), op, ": all inputs must be alike, got ",
            first.dtype(), " on ", first.device(), " and ", v.dtype(), " on ", v.device());
}

void check_parameters(const char* op, const Variable& x, std::initializer_list<Variable> parameters) {
  const DType dtype = accumulation_dtype(x.dtype());
  for (const Variable& p : parameters)
    if (p.defined())
      check(p.dtype() == dtype && p.device() == x.device(), op, ": parameters must be ", dtype, " on ", x.device(),
            " for x of ", x.dtype(), ", got ", p.dtype(), " on ", p.device());
}

}  // namespace lacuna

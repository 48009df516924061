#pragma once
// The parameters of a model: named leaves in one flat buffer of values and one of gradients.

#include <string>
#include <vector>

#include "autograd/variable.h"

namespace lacuna {

/// A parameter before it exists.
struct ParameterSpec {
  std::string name;  // documented name, as in a checkpoint: blocks.0.attention.q.weight
  Shape shape;
  double init_std = 0.0;  // standard deviation of its normal initialization; 0: filled with init_value
  double init_value = 0.0;
  bool waves = false;  // of a table [rows, columns] with init_std: each column a cosine over the rows
  std::string part_of = {};  // name of the leaf that has the rows of all parts that name it; empty: is a leaf itself
};

/// Values and gradients of all parameters, each in one flat buffer, with a Variable on each piece. Leaves, which are
/// what operations read, begin at multiples of 32 elements; the padding between them is zero and stays zero. A leaf is
/// a parameter, or several whose rows follow each other.
///
/// Beside activations of 16 bits a third buffer has the values in their dtype, for the products (Variable::value_for).
/// Adam and Ema keep it up to date; whoever else writes values calls update_rounded(). In builds with assertions a
/// model on the CPU refuses to compute with a copy that is out of date.
class Parameters {
 public:
  struct Entry {
    std::string name;
    Shape shape;
    int64_t offset = 0;  // first element in the flat buffers
    Variable variable;
  };

  /// Allocates and initializes: normal numbers of purpose init at op = index of the spec, rounded to `dtype`.
  ///
  /// Waves make rows near each other alike: x[r, j] = init_std sqrt(2) cos(w_j r + phase_j), phase uniform, w
  /// log-uniform from half a period over all rows to 16 periods, at most half a period from a row to the next.
  /// `rounded` is bf16 or f16 to keep the copy in; else there is none.
  Parameters(const std::vector<ParameterSpec>& specs, uint64_t seed, DType dtype = DType::f32, Device device = kCpu,
             DType rounded = DType::f32);

  const std::vector<Entry>& entries() const { return entries_; }  // the parameters, in the order of the specs
  const std::vector<Entry>& leaves() const { return leaves_; }    // by offset

  /// The parameter or leaf of that name. Throws Error where there is none.
  const Variable& operator[](const std::string& name) const;

  const Tensor& values() const { return values_; }        // flat, padding included
  const Tensor& gradients() const { return gradients_; }  // flat, as values
  const Tensor& rounded() const { return rounded_; }      // the same, or undefined

  void update_rounded() const;

  /// Throws Error when the copy is not that of the values, bit for bit. Reads all of both, and waits for a GPU.
  void check_rounded() const;

  /// Number of parameters, padding excluded.
  int64_t count() const { return count_; }

  void clear_gradients() const;

 private:
  std::vector<Entry> entries_, leaves_;
  Tensor values_, gradients_, rounded_;
  int64_t count_ = 0;
};

/// Number of parameters that `specs` describe.
int64_t count_parameters(const std::vector<ParameterSpec>& specs);

/// Elements of a flat buffer of them, padding included.
int64_t flat_size(const std::vector<ParameterSpec>& specs);

}  // namespace lacuna

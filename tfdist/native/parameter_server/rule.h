// The update rules of Keras's element-wise optimizers: what a server does with a gradient.
//
// The formulas, in the order of Keras's operations, are those of tfdist/parameter_server/reference.py, which also names
// the papers. Constants are rounded to the element type where Keras rounds them; every element is then computed by one
// operation and one rounding at a time, so that all instruction sets give equal bits and a tensor may be cut anywhere.
#ifndef TFDIST_PARAMETER_SERVER_RULE_H_
#define TFDIST_PARAMETER_SERVER_RULE_H_

#include <cstdint>

#include "parameter_server/rule_kernels.h"
#include "tfdist.h"

namespace tfdist {

// Whether the kind and the flags are known and all parameters are finite.
bool is_valid(const tfdist_rule& rule);

// How many arrays as large as the parameter the rule keeps, and what each holds at the start. In Keras's order:
//   SGD       (momentum), where it is not 0
//   ADAM      momentum, velocity, (velocity_hat)
//   ADAGRAD   accumulator
//   RMSPROP   velocity, (momentum, where it is > 0), (average_gradient)
//   ADADELTA  accumulated_grad, accumulated_delta_var
//   ADAMAX    momentum, norm
//   NADAM     momentum, velocity
//   FTRL      accumulator, linear
//   LION      momentum
int num_slots(const tfdist_rule& rule);
double initial_slot_value(const tfdist_rule& rule, int slot);

// Whether rows without a gradient keep their parameters and slots, so that Keras's semantics need not sweep the tensor:
// ADD, SGD without momentum, Adagrad; and none of them with weight decay.
bool touches_only_rows(const tfdist_rule& rule, double weight_decay = 0);

// Whether only the sum of rows with equal index counts under Keras's semantics, so that it may be formed before they
// travel: ADD, SGD, Lion. The others also sum the squares of those rows, or their magnitudes.
bool is_linear_in_gradient(const tfdist_rule& rule);

// Whether every index is one of a row of a tensor with `num_rows_of_theta` rows. Update does not look.
bool rows_in_range(const int64_t* rows, int64_t num_rows, int64_t num_rows_of_theta);

// One update of one tensor: constants are computed once, then it is applied to any stretches of the tensor, by any
// threads at once as long as the stretches differ.
class Update {
 public:
  // `t` counts from 1: Keras's iterations + 1. `scalars` is the tensor's state besides its slots, see
  // tfdist_rule_initialize; it is advanced here to `t`. Weight decay is Keras's: theta -= theta * decay * rate, first.
  Update(const tfdist_rule& rule, double learning_rate, double weight_decay, int64_t t, double* scalars);

  // `slots`: the arrays in the order above, at the same stretch as theta. T is float or double; no arrays overlap.
  template <typename T>
  void apply(T* theta, T* const* slots, const T* gradient, int64_t n) const;

  // A gradient of whole rows: values[i * row_elements ...] belongs to row rows[i]; an index may occur several times.
  // Not lazy: as Keras on TensorFlow, where rows without a gradient have the gradient 0, their slots move on, and squares
  // of rows with equal index are summed. That sweeps the tensor, unless touches_only_rows.
  // Lazy: rows with equal index are summed, then parameters and slots of these rows are updated, and no others.
  template <typename T>
  void apply_rows(T* theta, T* const* slots, const int64_t* rows, const T* values, int64_t num_rows,
                  int64_t row_elements, int64_t num_rows_of_theta, bool is_lazy) const;

 private:
  template <typename T>
  const Coefficients<T>& coefficients() const;
  template <typename T>
  void apply_with(T* theta, T* const* slots, const T* gradient, const T* magnitudes, int64_t n) const;
  template <typename T>
  void apply_zeros(T* theta, T* const* slots, int64_t n) const;

  RuleVariant variant_;
  int num_slots_;
  bool decays_;
  bool touches_only_rows_;
  Coefficients<float> in_float_;
  Coefficients<double> in_double_;
};

}  // namespace tfdist
#endif  // TFDIST_PARAMETER_SERVER_RULE_H_

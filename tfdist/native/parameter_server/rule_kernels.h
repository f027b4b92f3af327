// The loops of rule.h, compiled once per instruction set; the choice among them is that of common/kernels.h.
#ifndef TFDIST_PARAMETER_SERVER_RULE_KERNELS_H_
#define TFDIST_PARAMETER_SERVER_RULE_KERNELS_H_

#include <cstdint>

namespace tfdist {

// A rule with its flags: what differs in its loop.
enum RuleVariant {
  kRuleAdd,
  kRuleSgd,
  kRuleSgdMomentum,
  kRuleSgdNesterov,
  kRuleAdam,
  kRuleAmsgrad,
  kRuleAdagrad,
  kRuleRmsprop,
  kRuleRmspropMomentum,
  kRuleRmspropCentered,
  kRuleRmspropCenteredMomentum,
  kRuleAdadelta,
  kRuleAdamax,
  kRuleNadam,
  kRuleFtrl,
  kRuleFtrlPower,  // a learning rate power other than -0.5
  kRuleLion,
  kRuleVariants
};

// What is the same for all elements of one update; a rule uses some of it.
template <typename T>
struct Coefficients {
  T learning_rate, weight_decay, momentum, epsilon;
  T beta_1, rest_1;            // of the first moment, and 1 - beta_1 as Keras rounds it
  T beta_2, rest_2;            // of the second moment; rho of RMSprop and Adadelta
  T step_size;                 // Adam: the bias-corrected learning rate
  T correction_1, correction;  // Adamax, Nadam: what the first moment, Nadam: and the gradient is divided by
  T correction_2;              // Nadam: what the second moment is divided by
  T next_u, rest_u;            // Nadam: u of the next step, 1 - u of this one
  T power, l1, twice_l2, twice_shrinkage;  // Ftrl
};

template <typename T>
struct RuleLoops {
  // `magnitudes`: the squares of the gradient (Adamax: its absolute values) where they do not follow from it.
  using Loop = void (*)(const Coefficients<T>& coefficients, T* theta, T* const* slots, const T* gradient,
                        const T* magnitudes, int64_t n);
  Loop apply[kRuleVariants];
  Loop apply_apart[kRuleVariants];  // with magnitudes
  void (*decay)(const Coefficients<T>& coefficients, T* theta, int64_t n);
  void (*sum_row)(T* sum, const T* row, int64_t n);
  void (*sum_squares)(T* sum, const T* row, int64_t n);
  void (*sum_absolutes)(T* sum, const T* row, int64_t n);
};

struct RuleKernels {
  RuleLoops<float> in_float;
  RuleLoops<double> in_double;
};

const RuleKernels& baseline_rule_kernels();
// Baseline's where this build has no such instructions.
const RuleKernels& avx2_rule_kernels();
const RuleKernels& avx512_rule_kernels();

// Those of the instruction set that common/kernels.h has chosen.
template <typename T>
const RuleLoops<T>& rule_loops();

}  // namespace tfdist
#endif  // TFDIST_PARAMETER_SERVER_RULE_KERNELS_H_

// The loops of rule_kernels.h as plain C++ that compilers vectorise. One source per instruction set includes it and
// defines TFDIST_TARGET, the attribute that names the instruction set, or nothing. All of it is of internal linkage.
#ifndef TFDIST_PARAMETER_SERVER_RULE_LOOPS_H_
#define TFDIST_PARAMETER_SERVER_RULE_LOOPS_H_

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "parameter_server/rule_kernels.h"
#include "parameter_server/rule_steps.h"

namespace tfdist {
namespace {

template <typename T, class Step, bool kApart>
TFDIST_STEP void apply_step(const Coefficients<T>& c, T& x, T* s, T g, const T* magnitudes, int64_t i) {
  if constexpr (!kApart) {
    Step::apply(c, x, s, g, std::is_same_v<Step, AdamaxStep> ? std::abs(g) : g * g);
  } else if constexpr (std::is_same_v<Step, AdadeltaStep>) {
    Step::apply_apart(c, x, s, g, magnitudes[i]);
  } else {
    Step::apply(c, x, s, g, magnitudes[i]);
  }
}

template <typename T, class Step, bool kApart>
TFDIST_TARGET void loop_apart(const Coefficients<T> c, T* __restrict x, T* __restrict s0, T* __restrict s1,
                              T* __restrict s2, const T* __restrict g, const T* __restrict q, int64_t n) {
  constexpr int kSlots = Step::kSlots;
  for (int64_t i = 0; i < n; ++i) {
    T parameter = x[i];
    T s[3] = {};
    if constexpr (kSlots > 0) s[0] = s0[i];
    if constexpr (kSlots > 1) s[1] = s1[i];
    if constexpr (kSlots > 2) s[2] = s2[i];
    apply_step<T, Step, kApart>(c, parameter, s, g[i], q, i);
    x[i] = parameter;
    if constexpr (kSlots > 0) s0[i] = s[0];
    if constexpr (kSlots > 1) s1[i] = s[1];
    if constexpr (kSlots > 2) s2[i] = s[2];
  }
}

template <typename T, class Step, bool kApart>
TFDIST_TARGET void loop(const Coefficients<T>& c, T* theta, T* const* slots, const T* gradient, const T* magnitudes,
                        int64_t n) {
  constexpr int kSlots = Step::kSlots;
  loop_apart<T, Step, kApart>(c, theta, kSlots > 0 ? slots[0] : nullptr, kSlots > 1 ? slots[1] : nullptr,
                              kSlots > 2 ? slots[2] : nullptr, gradient, magnitudes, n);
}

template <typename T>
TFDIST_TARGET void decay(const Coefficients<T>& c, T* theta, int64_t n) {
  const T rate = c.learning_rate, weight_decay = c.weight_decay;
  for (int64_t i = 0; i < n; ++i) theta[i] -= (theta[i] * weight_decay) * rate;
}

template <typename T>
TFDIST_TARGET void sum_row(T* __restrict sum, const T* __restrict row, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += row[i];
}

template <typename T>
TFDIST_TARGET void sum_squares(T* __restrict sum, const T* __restrict row, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += row[i] * row[i];
}

template <typename T>
TFDIST_TARGET void sum_absolutes(T* __restrict sum, const T* __restrict row, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += std::abs(row[i]);
}

template <typename T, class Step>
void fill_variant(RuleLoops<T>& loops, RuleVariant variant) {
  loops.apply[variant] = loop<T, Step, false>;
  loops.apply_apart[variant] = loop<T, Step, true>;
}

template <typename T>
void fill(RuleLoops<T>& loops) {
  fill_variant<T, AddStep>(loops, kRuleAdd);
  fill_variant<T, SgdStep>(loops, kRuleSgd);
  fill_variant<T, MomentumStep<false>>(loops, kRuleSgdMomentum);
  fill_variant<T, MomentumStep<true>>(loops, kRuleSgdNesterov);
  fill_variant<T, AdamStep<false>>(loops, kRuleAdam);
  fill_variant<T, AdamStep<true>>(loops, kRuleAmsgrad);
  fill_variant<T, AdagradStep>(loops, kRuleAdagrad);
  fill_variant<T, RmspropStep<false, false>>(loops, kRuleRmsprop);
  fill_variant<T, RmspropStep<true, false>>(loops, kRuleRmspropMomentum);
  fill_variant<T, RmspropStep<false, true>>(loops, kRuleRmspropCentered);
  fill_variant<T, RmspropStep<true, true>>(loops, kRuleRmspropCenteredMomentum);
  fill_variant<T, AdadeltaStep>(loops, kRuleAdadelta);
  fill_variant<T, AdamaxStep>(loops, kRuleAdamax);
  fill_variant<T, NadamStep>(loops, kRuleNadam);
  fill_variant<T, FtrlStep<true>>(loops, kRuleFtrl);
  fill_variant<T, FtrlStep<false>>(loops, kRuleFtrlPower);
  fill_variant<T, LionStep>(loops, kRuleLion);
  loops.decay = decay<T>;
  loops.sum_row = sum_row<T>;
  loops.sum_squares = sum_squares<T>;
  loops.sum_absolutes = sum_absolutes<T>;
}

RuleKernels make_rule_kernels() {
  RuleKernels kernels{};
  fill(kernels.in_float);
  fill(kernels.in_double);
  return kernels;
}

}  // namespace
}  // namespace tfdist
#endif  // TFDIST_PARAMETER_SERVER_RULE_LOOPS_H_

#include "parameter_server/rule.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "parameter_server/rule_coefficients.h"

namespace tfdist {
namespace {

// Elements that stay in the first-level cache between the decay and the step.
constexpr int64_t kBlock = 4096;

bool has_momentum(const tfdist_rule& rule) {
  if (rule.kind == TFDIST_RULE_SGD) return rule.parameters[kSgdMomentumAt] != 0;
  return rule.kind == TFDIST_RULE_RMSPROP && rule.parameters[kRmspropMomentumAt] > 0;
}

int32_t flags_of_kind(int32_t kind) {
  switch (kind) {
    case TFDIST_RULE_SGD: return TFDIST_RULE_NESTEROV;
    case TFDIST_RULE_ADAM: return TFDIST_RULE_AMSGRAD;
    case TFDIST_RULE_RMSPROP: return TFDIST_RULE_CENTERED;
    default: return 0;
  }
}

RuleVariant rmsprop_variant(bool momentum, bool centered) {
  if (centered) return momentum ? kRuleRmspropCenteredMomentum : kRuleRmspropCentered;
  return momentum ? kRuleRmspropMomentum : kRuleRmsprop;
}

RuleVariant variant_of(const tfdist_rule& rule) {
  const bool momentum = has_momentum(rule), flagged = rule.flags != 0;
  switch (rule.kind) {
    case TFDIST_RULE_SGD: return !momentum ? kRuleSgd : flagged ? kRuleSgdNesterov : kRuleSgdMomentum;
    case TFDIST_RULE_ADAM: return flagged ? kRuleAmsgrad : kRuleAdam;
    case TFDIST_RULE_ADAGRAD: return kRuleAdagrad;
    case TFDIST_RULE_RMSPROP: return rmsprop_variant(momentum, flagged);
    case TFDIST_RULE_ADADELTA: return kRuleAdadelta;
    case TFDIST_RULE_ADAMAX: return kRuleAdamax;
    case TFDIST_RULE_NADAM: return kRuleNadam;
    case TFDIST_RULE_FTRL: return rule.parameters[kFtrlPowerAt] == -0.5 ? kRuleFtrl : kRuleFtrlPower;
    case TFDIST_RULE_LION: return kRuleLion;
    default: return kRuleAdd;
  }
}

}  // namespace

bool is_valid(const tfdist_rule& rule) {
  if (rule.kind < TFDIST_RULE_ADD || rule.kind > TFDIST_RULE_LION) return false;
  if ((rule.flags & ~flags_of_kind(rule.kind)) != 0) return false;
  return std::all_of(std::begin(rule.parameters), std::end(rule.parameters), [](double p) { return std::isfinite(p); });
}

int num_slots(const tfdist_rule& rule) {
  switch (rule.kind) {
    case TFDIST_RULE_SGD: return has_momentum(rule);
    case TFDIST_RULE_ADAM: return rule.flags != 0 ? 3 : 2;
    case TFDIST_RULE_RMSPROP: return 1 + has_momentum(rule) + (rule.flags != 0);
    case TFDIST_RULE_ADAGRAD:
    case TFDIST_RULE_LION: return 1;
    case TFDIST_RULE_ADADELTA:
    case TFDIST_RULE_ADAMAX:
    case TFDIST_RULE_NADAM:
    case TFDIST_RULE_FTRL: return 2;
    default: return 0;
  }
}

double initial_slot_value(const tfdist_rule& rule, int slot) {
  if (slot != 0) return 0;
  // Keras's initializer makes a float32 of it, for float64 variables too.
  if (rule.kind == TFDIST_RULE_ADAGRAD) return static_cast<float>(rule.parameters[kAdagradInitial]);
  return rule.kind == TFDIST_RULE_FTRL ? static_cast<float>(rule.parameters[kFtrlInitial]) : 0;
}

bool touches_only_rows(const tfdist_rule& rule, double weight_decay) {
  const bool is_plain = rule.kind == TFDIST_RULE_ADD || rule.kind == TFDIST_RULE_ADAGRAD ||
                        (rule.kind == TFDIST_RULE_SGD && !has_momentum(rule));
  return is_plain && weight_decay == 0;
}

bool is_linear_in_gradient(const tfdist_rule& rule) {
  return rule.kind == TFDIST_RULE_ADD || rule.kind == TFDIST_RULE_SGD || rule.kind == TFDIST_RULE_LION;
}

bool rows_in_range(const int64_t* rows, int64_t num_rows, int64_t num_rows_of_theta) {
  return std::all_of(rows, rows + num_rows, [=](int64_t row) { return row >= 0 && row < num_rows_of_theta; });
}

Update::Update(const tfdist_rule& rule, double learning_rate, double weight_decay, int64_t t, double* scalars)
    : variant_(variant_of(rule)),
      num_slots_(num_slots(rule)),
      decays_(weight_decay != 0),
      touches_only_rows_(tfdist::touches_only_rows(rule, weight_decay)) {
  advance_scalars(rule, t, scalars);
  in_float_ = make_coefficients<float>(rule, learning_rate, weight_decay, t, scalars[kProductInFloat]);
  in_double_ = make_coefficients<double>(rule, learning_rate, weight_decay, t, scalars[kProductInDouble]);
}

template <>
const Coefficients<float>& Update::coefficients() const { return in_float_; }
template <>
const Coefficients<double>& Update::coefficients() const { return in_double_; }

template <typename T>
void Update::apply_with(T* theta, T* const* slots, const T* gradient, const T* magnitudes, int64_t n) const {
  const RuleLoops<T>& loops = rule_loops<T>();
  const auto step = magnitudes != nullptr ? loops.apply_apart[variant_] : loops.apply[variant_];
  const int64_t block = decays_ ? kBlock : std::max<int64_t>(n, 1);
  for (int64_t start = 0; start < n; start += block) {
    const int64_t size = std::min(block, n - start);
    T* at[3] = {};
    for (int slot = 0; slot < num_slots_; ++slot) at[slot] = slots[slot] + start;
    if (decays_) loops.decay(coefficients<T>(), theta + start, size);
    step(coefficients<T>(), theta + start, at, gradient + start, magnitudes ? magnitudes + start : nullptr, size);
  }
}

template <typename T>
void Update::apply(T* theta, T* const* slots, const T* gradient, int64_t n) const {
  apply_with<T>(theta, slots, gradient, nullptr, n);
}

// A gradient of nothing but zeros, which are not the caller's to hold.
template <typename T>
void Update::apply_zeros(T* theta, T* const* slots, int64_t n) const {
  static const T zeros[kBlock] = {};
  for (int64_t start = 0; start < n; start += kBlock) {
    T* at[3] = {};
    for (int slot = 0; slot < num_slots_; ++slot) at[slot] = slots[slot] + start;
    apply_with<T>(theta + start, at, zeros, nullptr, std::min(kBlock, n - start));
  }
}

template void Update::apply(float*, float* const*, const float*, int64_t) const;
template void Update::apply(double*, double* const*, const double*, int64_t) const;
template void Update::apply_with(float*, float* const*, const float*, const float*, int64_t) const;
template void Update::apply_with(double*, double* const*, const double*, const double*, int64_t) const;
template void Update::apply_zeros(float*, float* const*, int64_t) const;
template void Update::apply_zeros(double*, double* const*, int64_t) const;

}  // namespace tfdist

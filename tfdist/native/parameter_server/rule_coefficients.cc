#include "parameter_server/rule_coefficients.h"

#include <cmath>

namespace tfdist {
namespace {

// A Python number that Keras hands to tf.cast: that makes a float32 of it first, for float64 variables too.
template <typename T>
T cast(double value) {
  return static_cast<T>(static_cast<float>(value));
}

// Powers in double, rounded once: what TensorFlow's powers of two scalars are.
template <typename T>
T raise(T base, int64_t exponent) {
  return static_cast<T>(std::pow(static_cast<double>(base), static_cast<double>(static_cast<T>(exponent))));
}

// Nadam's u(t) = beta_1 (1 - 0.96^t / 2), without the factor beta_1.
template <typename T>
T nadam_schedule(T base, int64_t t) {
  return T(1) - T(0.5) * raise(base, t);
}

template <typename T>
double advance_product(double product, double beta_1, int64_t from, int64_t to) {
  T value = static_cast<T>(product);
  for (int64_t t = from + 1; t <= to && value != T(0); ++t) value = value * T(beta_1) * nadam_schedule(T(0.96), t);
  return value;
}

template <typename T>
void set_betas(Coefficients<T>& c, double beta_1, double beta_2) {
  c.beta_1 = T(beta_1), c.rest_1 = T(1 - beta_1);
  c.beta_2 = T(beta_2), c.rest_2 = T(1 - beta_2);
}

// Nadam and Lion cast beta before they subtract it from 1.
template <typename T>
void set_cast_betas(Coefficients<T>& c, double beta_1, double beta_2) {
  c.beta_1 = cast<T>(beta_1), c.rest_1 = T(1) - c.beta_1;
  c.beta_2 = cast<T>(beta_2), c.rest_2 = T(1) - c.beta_2;
}

template <typename T>
void set_adam(Coefficients<T>& c, const double* p, int64_t t) {
  set_betas(c, p[kAdamBeta1], p[kAdamBeta2]);
  c.epsilon = T(p[kAdamEpsilon]);
  c.step_size =
      c.learning_rate * std::sqrt(T(1) - raise(cast<T>(p[kAdamBeta2]), t)) / (T(1) - raise(cast<T>(p[kAdamBeta1]), t));
}

template <typename T>
void set_adamax(Coefficients<T>& c, const double* p, int64_t t) {
  set_betas(c, p[kAdamBeta1], p[kAdamBeta2]);
  c.epsilon = T(p[kAdamEpsilon]);
  c.correction_1 = T(1) - raise(cast<T>(p[kAdamBeta1]), t);
}

template <typename T>
void set_nadam(Coefficients<T>& c, const double* p, int64_t t, T u_product) {
  set_cast_betas(c, p[kAdamBeta1], p[kAdamBeta2]);
  c.epsilon = T(p[kAdamEpsilon]);
  c.next_u = c.beta_1 * nadam_schedule(cast<T>(0.96), t + 1);
  c.rest_u = T(1) - c.beta_1 * nadam_schedule(cast<T>(0.96), t);
  c.correction_1 = T(1) - u_product * c.next_u;
  c.correction = T(1) - u_product;
  c.correction_2 = T(1) - raise(c.beta_2, t);
}

template <typename T>
void set_rmsprop(Coefficients<T>& c, const double* p) {
  set_betas(c, 0, p[kRmspropRho]);
  c.momentum = T(p[kRmspropMomentumAt]);
  c.epsilon = T(p[kRmspropEpsilon]);
}

template <typename T>
void set_ftrl(Coefficients<T>& c, const double* p) {
  c.power = T(-p[kFtrlPowerAt]);
  c.l1 = T(p[kFtrlL1]);
  c.twice_l2 = T(2) * (T(p[kFtrlL2]) + T(p[kFtrlBeta]) / (T(2) * c.learning_rate));
  c.twice_shrinkage = T(2 * p[kFtrlShrinkage]);
}

}  // namespace

void advance_scalars(const tfdist_rule& rule, int64_t t, double* scalars) {
  if (rule.kind != TFDIST_RULE_NADAM || scalars[kProductStep] >= static_cast<double>(t)) return;
  const double beta_1 = rule.parameters[kAdamBeta1];
  const auto from = static_cast<int64_t>(scalars[kProductStep]);
  scalars[kProductInDouble] = advance_product<double>(scalars[kProductInDouble], beta_1, from, t);
  scalars[kProductInFloat] = advance_product<float>(scalars[kProductInFloat], beta_1, from, t);
  scalars[kProductStep] = static_cast<double>(t);
}

template <typename T>
Coefficients<T> make_coefficients(const tfdist_rule& rule, double learning_rate, double weight_decay, int64_t t,
                                  double u_product) {
  const double* p = rule.parameters;
  Coefficients<T> c{};
  c.learning_rate = T(learning_rate);
  c.weight_decay = cast<T>(weight_decay);
  switch (rule.kind) {
    case TFDIST_RULE_SGD: c.momentum = cast<T>(p[kSgdMomentumAt]); break;
    case TFDIST_RULE_ADAM: set_adam(c, p, t); break;
    case TFDIST_RULE_ADAGRAD: c.epsilon = T(p[kAdagradEpsilon]); break;
    case TFDIST_RULE_RMSPROP: set_rmsprop(c, p); break;
    case TFDIST_RULE_ADADELTA: set_betas(c, 0, p[kAdadeltaRho]), c.epsilon = T(p[kAdadeltaEpsilon]); break;
    case TFDIST_RULE_ADAMAX: set_adamax(c, p, t); break;
    case TFDIST_RULE_NADAM: set_nadam(c, p, t, T(u_product)); break;
    case TFDIST_RULE_FTRL: set_ftrl(c, p); break;
    case TFDIST_RULE_LION: set_cast_betas(c, p[kLionBeta1], p[kLionBeta2]); break;
    default: break;
  }
  return c;
}

template Coefficients<float> make_coefficients(const tfdist_rule&, double, double, int64_t, double);
template Coefficients<double> make_coefficients(const tfdist_rule&, double, double, int64_t, double);

}  // namespace tfdist

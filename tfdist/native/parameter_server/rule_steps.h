// The update rules on one element: x the parameter, s its slots, g the gradient, q its square (Adamax: its magnitude).
//
// For rule_loops.h alone: every function is inlined and compiled for the including source's TFDIST_TARGET. Parentheses
// and order are those of keras/src/optimizers; changing them changes bits.
#ifndef TFDIST_PARAMETER_SERVER_RULE_STEPS_H_
#define TFDIST_PARAMETER_SERVER_RULE_STEPS_H_

#include <cmath>

#include "common/half.h"
#include "parameter_server/rule_kernels.h"

#define TFDIST_STEP TFDIST_INLINE TFDIST_TARGET

namespace tfdist {
namespace {

// The larger one, or the second where either is no number.
template <typename T>
TFDIST_STEP T larger(T a, T b) { return a > b ? a : b; }

struct AddStep {
  static constexpr int kSlots = 0;
  template <typename T>
  static TFDIST_STEP void apply(const Coefficients<T>&, T& x, T*, T g, T) { x += g; }
};

struct SgdStep {
  static constexpr int kSlots = 0;
  template <typename T>
  static TFDIST_STEP void apply(const Coefficients<T>& c, T& x, T*, T g, T) { x -= g * c.learning_rate; }
};

template <bool kNesterov>
struct MomentumStep {
  static constexpr int kSlots = 1;
  template <typename T>
  static TFDIST_STEP void apply(const Coefficients<T>& c, T& x, T* s, T g, T) {
    s[0] = s[0] * c.momentum - g * c.learning_rate;
    x += kNesterov ? s[0] * c.momentum - g * c.learning_rate : s[0];
  }
};

template <bool kAmsgrad>
struct AdamStep {
  static constexpr int kSlots = kAmsgrad ? 3 : 2;
  template <typename T>
  static TFDIST_STEP void apply(const Coefficients<T>& c, T& x, T* s, T g, T q) {
    s[0] += (g - s[0]) * c.rest_1;
    s[1] += (q - s[1]) * c.rest_2;
    T v = s[1];
    if constexpr (kAmsgrad) v = s[2] = larger(s[2], v);
    x -= (s[0] * c.step_size) / (std::sqrt(v) + c.epsilon);
  }
};

struct AdagradStep {
  static constexpr int kSlots = 1;
  template <typename T>
  static TFDIST_STEP void apply(const Coefficients<T>& c, T& x, T* s, T g, T q) {
    s[0] += q;
    x -= (c.learning_rate * g) / std::sqrt(s[0] + c.epsilon);
  }
};

template <bool kMomentum, bool kCentered>
struct RmspropStep {
  static constexpr int kSlots = 1 + kMomentum + kCentered;
  template <typename T>
  static TFDIST_STEP void apply(const Coefficients<T>& c, T& x, T* s, T g, T q) {
    s[0] = c.beta_2 * s[0] + c.rest_2 * q;
    T denominator = s[0];
    if constexpr (kCentered) {
      T& average = s[1 + kMomentum];
      average = c.beta_2 * average + c.rest_2 * g;
      denominator -= average * average;
    }
    T increment = (c.learning_rate * g) / std::sqrt(denominator + c.epsilon);
    if constexpr (kMomentum) increment = s[1] = c.momentum * s[1] + increment;
    x -= increment;
  }
};

struct AdadeltaStep {
  static constexpr int kSlots = 2;
  template <typename T>
  static TFDIST_STEP void apply(const Coefficients<T>& c, T& x, T* s, T g, T) {
    advance_gradient(c, s, g * g);
    const T delta = -((std::sqrt(s[1] + c.epsilon) * g) / std::sqrt(s[0] + c.epsilon));
    advance_delta(c, s, delta * delta);
    x += c.learning_rate * delta;
  }
  // Several gradients of one element: each has its own delta, and the squares of those are summed.
  template <typename T>
  static TFDIST_STEP void apply_apart(const Coefficients<T>& c, T& x, T* s, T g, T q) {
    advance_gradient(c, s, q);
    const T numerator = std::sqrt(s[1] + c.epsilon), denominator = std::sqrt(s[0] + c.epsilon);
    const T ratio = numerator / denominator;
    advance_delta(c, s, (ratio * ratio) * q);
    x -= c.learning_rate * ((numerator * g) / denominator);
  }

 private:
  template <typename T>
  static TFDIST_STEP void advance_gradient(const Coefficients<T>& c, T* s, T q) {
    s[0] = c.beta_2 * s[0] + c.rest_2 * q;
  }
  template <typename T>
  static TFDIST_STEP void advance_delta(const Coefficients<T>& c, T* s, T q) {
    s[1] = c.beta_2 * s[1] + c.rest_2 * q;
  }
};

struct AdamaxStep {
  static constexpr int kSlots = 2;
  template <typename T>
  static TFDIST_STEP void apply(const Coefficients<T>& c, T& x, T* s, T g, T magnitude) {
    s[0] += (g - s[0]) * c.rest_1;
    s[1] = larger(c.beta_2 * s[1], magnitude);
    x -= (c.learning_rate * s[0]) / (c.correction_1 * (s[1] + c.epsilon));
  }
};

struct NadamStep {
  static constexpr int kSlots = 2;
  template <typename T>
  static TFDIST_STEP void apply(const Coefficients<T>& c, T& x, T* s, T g, T q) {
    s[0] += (g - s[0]) * c.rest_1;
    s[1] += (q - s[1]) * c.rest_2;
    const T m = (c.next_u * s[0]) / c.correction_1 + (c.rest_u * g) / c.correction;
    x -= (m * c.learning_rate) / (std::sqrt(s[1] / c.correction_2) + c.epsilon);
  }
};

template <bool kIsRoot>  // the learning rate power is -0.5
struct FtrlStep {
  static constexpr int kSlots = 2;
  template <typename T>
  static TFDIST_STEP void apply(const Coefficients<T>& c, T& x, T* s, T g, T q) {
    const T shrunk = g + c.twice_shrinkage * x;
    const T accumulator = s[0] + q;
    const T after = raise(accumulator, c.power), before = raise(s[0], c.power);
    s[1] += shrunk - ((after - before) / c.learning_rate) * x;
    const T quadratic = after / c.learning_rate + c.twice_l2;
    const T lowered = s[1] < -c.l1 ? -c.l1 : s[1];
    const T clipped = lowered > c.l1 ? c.l1 : lowered;
    x = (clipped - s[1]) / quadratic;
    s[0] = accumulator;
  }

 private:
  template <typename T>
  static TFDIST_STEP T raise(T x, T power) { return kIsRoot ? std::sqrt(x) : std::pow(x, power); }
};

struct LionStep {
  static constexpr int kSlots = 1;
  template <typename T>
  static TFDIST_STEP void apply(const Coefficients<T>& c, T& x, T* s, T g, T) {
    const T direction = s[0] * c.beta_1 + g * c.rest_1;
    // One selection: with two the loop is not vectorised. Zero and what is no number stay themselves.
    const T sign = std::abs(direction) > T(0) ? std::copysign(T(1), direction) : direction;
    x -= c.learning_rate * sign;
    s[0] = s[0] * c.beta_2 + g * c.rest_2;
  }
};

}  // namespace
}  // namespace tfdist
#endif  // TFDIST_PARAMETER_SERVER_RULE_STEPS_H_

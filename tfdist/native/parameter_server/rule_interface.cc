// The C interface to the update rules: checks what it is given, then does what rule.h says.
#include "parameter_server/rule.h"
#include "parameter_server/rule_coefficients.h"
#include "tfdist.h"

namespace {

bool is_update(const tfdist_rule* rule, int32_t dtype, int64_t t, const double* scalars, const void* theta,
               void* const* slots) {
  if (rule == nullptr || !tfdist::is_valid(*rule)) return false;
  if (dtype != TFDIST_FLOAT32 && dtype != TFDIST_FLOAT64) return false;
  if (t < 1 || scalars == nullptr || theta == nullptr) return false;
  for (int slot = 0; slot < tfdist::num_slots(*rule); ++slot) {
    if (slots == nullptr || slots[slot] == nullptr) return false;
  }
  return true;
}

template <typename T>
void apply(const tfdist::Update& update, void* theta, void* const* slots, const void* gradient, int64_t n) {
  update.apply(static_cast<T*>(theta), reinterpret_cast<T* const*>(slots), static_cast<const T*>(gradient), n);
}

template <typename T>
void apply_rows(const tfdist::Update& update, void* theta, void* const* slots, const int64_t* rows, const void* values,
                int64_t num_rows, int64_t row_elements, int64_t num_rows_of_theta, int32_t is_lazy) {
  update.apply_rows(static_cast<T*>(theta), reinterpret_cast<T* const*>(slots), rows, static_cast<const T*>(values),
                    num_rows, row_elements, num_rows_of_theta, is_lazy != 0);
}

}  // namespace

int32_t tfdist_rule_num_slots(const tfdist_rule* rule) {
  return rule != nullptr && tfdist::is_valid(*rule) ? tfdist::num_slots(*rule) : -TFDIST_INVALID;
}

double tfdist_rule_initial_slot_value(const tfdist_rule* rule, int32_t slot) {
  return rule != nullptr ? tfdist::initial_slot_value(*rule, slot) : 0;
}

int32_t tfdist_rule_touches_only_rows(const tfdist_rule* rule, double weight_decay) {
  return rule != nullptr && tfdist::touches_only_rows(*rule, weight_decay);
}

int32_t tfdist_rule_is_linear_in_gradient(const tfdist_rule* rule) {
  return rule != nullptr && tfdist::is_linear_in_gradient(*rule);
}

void tfdist_rule_initialize(const tfdist_rule* rule, double* scalars) {
  const bool is_nadam = rule->kind == TFDIST_RULE_NADAM;
  for (int i = 0; i < TFDIST_RULE_SCALARS; ++i) scalars[i] = 0;
  if (is_nadam) scalars[tfdist::kProductInDouble] = scalars[tfdist::kProductInFloat] = 1;
}

int32_t tfdist_rule_apply(const tfdist_rule* rule, int32_t dtype, double learning_rate, double weight_decay, int64_t t,
                          double* scalars, void* theta, void* const* slots, const void* gradient, int64_t n) {
  if (!is_update(rule, dtype, t, scalars, theta, slots) || gradient == nullptr || n < 0) return -TFDIST_INVALID;
  const tfdist::Update update(*rule, learning_rate, weight_decay, t, scalars);
  (dtype == TFDIST_FLOAT32 ? apply<float> : apply<double>)(update, theta, slots, gradient, n);
  return TFDIST_OK;
}

int32_t tfdist_rule_apply_rows(const tfdist_rule* rule, int32_t dtype, double learning_rate, double weight_decay,
                               int64_t t, double* scalars, void* theta, void* const* slots, const int64_t* rows,
                               const void* values, int64_t num_rows, int64_t row_elements, int64_t num_rows_of_theta,
                               int32_t is_lazy) {
  if (!is_update(rule, dtype, t, scalars, theta, slots) || num_rows < 0 || row_elements < 0 || num_rows_of_theta < 0 ||
      rows == nullptr || values == nullptr || !tfdist::rows_in_range(rows, num_rows, num_rows_of_theta)) {
    return -TFDIST_INVALID;
  }
  const tfdist::Update update(*rule, learning_rate, weight_decay, t, scalars);
  (dtype == TFDIST_FLOAT32 ? apply_rows<float> : apply_rows<double>)(update, theta, slots, rows, values, num_rows,
                                                                     row_elements, num_rows_of_theta, is_lazy);
  return TFDIST_OK;
}

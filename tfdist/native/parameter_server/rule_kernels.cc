#include "parameter_server/rule_kernels.h"

#include <cstring>

#include "common/kernels.h"

namespace tfdist {
namespace {

const RuleKernels& chosen_kernels() {
  const char* name = kernels().name;
  if (std::strcmp(name, "avx512") == 0) return avx512_rule_kernels();
  if (std::strcmp(name, "avx2") == 0) return avx2_rule_kernels();
  return baseline_rule_kernels();
}

const RuleKernels& rule_kernels() {
  static const RuleKernels& chosen = chosen_kernels();
  return chosen;
}

}  // namespace

template <>
const RuleLoops<float>& rule_loops() { return rule_kernels().in_float; }
template <>
const RuleLoops<double>& rule_loops() { return rule_kernels().in_double; }

}  // namespace tfdist

// The loops for what every processor of the platform has: SSE2 on x86-64, NEON on aarch64.
#define TFDIST_TARGET
#include "parameter_server/rule_loops.h"

const tfdist::RuleKernels& tfdist::baseline_rule_kernels() {
  static const RuleKernels kernels = make_rule_kernels();
  return kernels;
}

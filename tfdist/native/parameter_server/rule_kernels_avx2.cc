// The loops for AVX2 (Haswell, Zen and later). Without FMA: contraction would change bits.
#include "parameter_server/rule_kernels.h"

#if defined(__x86_64__)
#define TFDIST_TARGET __attribute__((target("avx2")))
#include "parameter_server/rule_loops.h"

const tfdist::RuleKernels& tfdist::avx2_rule_kernels() {
  static const RuleKernels kernels = make_rule_kernels();
  return kernels;
}
#else
const tfdist::RuleKernels& tfdist::avx2_rule_kernels() { return baseline_rule_kernels(); }
#endif

// The loops for AVX-512 (Skylake-X, Zen 4 and later).
#include "parameter_server/rule_kernels.h"

#if defined(__x86_64__)
#define TFDIST_TARGET __attribute__((target("avx2,avx512f,avx512bw,avx512dq,avx512vl")))
#include "parameter_server/rule_loops.h"

const tfdist::RuleKernels& tfdist::avx512_rule_kernels() {
  static const RuleKernels kernels = make_rule_kernels();
  return kernels;
}
#else
const tfdist::RuleKernels& tfdist::avx512_rule_kernels() { return baseline_rule_kernels(); }
#endif

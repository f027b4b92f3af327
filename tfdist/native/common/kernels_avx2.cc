// The loops for AVX2 with F16C (Haswell, Zen and later). Without FMA: contraction would change bits.
#include "common/kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>

#define TFDIST_TARGET __attribute__((target("avx2,f16c")))
#define TFDIST_HARDWARE_HALF 1
#include "common/loops.h"

namespace tfdist {

const Kernels* avx2_kernels() {
  static const Kernels table = make_kernels("avx2");
  unsigned a = 0, b = 0, c = 0, d = 0;
  // Asked of the processor itself: older compilers' __builtin_cpu_supports does not know the name f16c.
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
  return f16c && __builtin_cpu_supports("avx2") ? &table : nullptr;
}

}  // namespace tfdist

#else
const tfdist::Kernels* tfdist::avx2_kernels() { return nullptr; }
#endif

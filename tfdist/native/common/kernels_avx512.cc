// The loops for AVX-512 (Skylake-X, Zen 4 and later).
//
// Never run by their author, who had no such processor: therefore nothing but loops.h as the compiler translates it,
// whose only intrinsics (F16C, 256 bits wide) are those that the AVX2 variant is tested with.
#include "common/kernels.h"

#if defined(__x86_64__)
#define TFDIST_TARGET __attribute__((target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")))
#define TFDIST_HARDWARE_HALF 1
#include "common/loops.h"

namespace tfdist {

const Kernels* avx512_kernels() {
  static const Kernels table = make_kernels("avx512");
  const bool supported = avx2_kernels() != nullptr && __builtin_cpu_supports("avx512f") &&
                         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                         __builtin_cpu_supports("avx512vl");
  return supported ? &table : nullptr;
}

}  // namespace tfdist

#else
const tfdist::Kernels* tfdist::avx512_kernels() { return nullptr; }
#endif

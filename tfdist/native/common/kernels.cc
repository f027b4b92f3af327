#include "common/kernels.h"

#include <cstdlib>
#include <cstring>

namespace tfdist {
namespace {

const Kernels& choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  const char* requested = std::getenv("TFDIST_INSTRUCTION_SET");
  const bool any = requested == nullptr;
  const Kernels* baseline = baseline_kernels();
  const Kernels* candidates[] = {avx512_kernels(), avx2_kernels(), baseline};
  const Kernels* best = nullptr;
  for (const Kernels* candidate : candidates) {
    if (candidate == nullptr) continue;
    if (best == nullptr) best = candidate;
    if (any || std::strcmp(candidate->name, requested) == 0) return *candidate;
  }
  return *best;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace tfdist

// The loops for what every processor of the platform has: SSE2 on x86-64, NEON on aarch64.
#define TFDIST_TARGET
#define TFDIST_HARDWARE_HALF 0
#include "common/loops.h"

namespace tfdist {

const Kernels* baseline_kernels() {
  static const Kernels table = make_kernels("baseline");
  return &table;
}

}  // namespace tfdist

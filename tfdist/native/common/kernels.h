// The loops of reduce.h, compiled once per instruction set, and the choice among them.
#ifndef TFDIST_COMMON_KERNELS_H_
#define TFDIST_COMMON_KERNELS_H_

#include <cstdint>

namespace tfdist {

// Rows and columns of the tables below.
enum Element { kFloat32, kFloat64, kBFloat16, kFloat16, kInt32, kInt64, kElements };
enum Operator { kAdd, kAddDivide, kMinimum, kMaximum, kMultiply, kOperators };

struct Kernels {
  using Combine = void (*)(void* target, const void* source, int64_t elements, double divisor);
  using Scale = void (*)(void* target, const void* source, int64_t elements, double scale);
  using Narrow = void (*)(void* wire, float* values, int64_t elements);
  using Widen = void (*)(float* target, const void* wire, int64_t elements);

  const char* name;
  Combine reduce[kElements][kOperators];
  Combine reduce_wire[kElements][kOperators];  // rows kBFloat16 and kFloat16; the others are null, as below
  Scale pack[kElements];
  Narrow narrow[kElements];
  Widen widen[kElements];
};

// Null where this build, or the processor, has no such instructions.
const Kernels* baseline_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();

// The one that TFDIST_INSTRUCTION_SET=baseline|avx2|avx512 names; the best one if it names none or one that is null.
// Chosen at the first call.
const Kernels& kernels();

}  // namespace tfdist
#endif  // TFDIST_COMMON_KERNELS_H_

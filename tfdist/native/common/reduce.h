// Arithmetic on raw arrays: element sizes, reductions, packing with a scale, 16-bit floats on the wire.
//
// Every function writes the same bits on every processor and with every instruction set (no contraction, no fast-math,
// one operation and one rounding per element, in the order of the calls); only of a NaN the payload is not promised.
// Pointers may have any alignment; target and source do not overlap, unless said otherwise.
#ifndef TFDIST_COMMON_REDUCE_H_
#define TFDIST_COMMON_REDUCE_H_

#include <cstddef>
#include <cstdint>

#include "tfdist.h"

namespace tfdist {

// Bytes of one element; 0 for an unknown type.
size_t element_size(int dtype);
bool can_reduce(int dtype, int reduce);
bool is_floating(int dtype);

// target[i] = target[i] (+, min, max, *) source[i]; mean adds. With a divisor other than 1, which only a sum or mean
// may have: (target[i] + source[i]) / divisor. Integers are divided toward zero; their divisor is at least 1.
// bf16 and f16 are computed in f32 and rounded to nearest even, once.
void reduce_into(void* target, const void* source, int64_t elements, int dtype, int reduce, double divisor);

// target[i] = scale * source[i]; a scale of 0 writes zeros whatever the source holds. target may be source.
void pack_scaled(void* target, const void* source, int64_t elements, int dtype, double scale);

// Whether elements of `dtype` may be sent as `wire_dtype`: float32 as bfloat16 or float16.
bool can_travel_as(int dtype, int wire_dtype);

// wire[i] = values[i] rounded to nearest even; values[i] becomes what a receiver reads, so that both hold equal bits.
void narrow(void* wire, float* values, int64_t elements, int wire_dtype);

// target[i] = wire[i], exactly.
void widen(float* target, const void* wire, int64_t elements, int wire_dtype);

// reduce_into for a float32 target and a source that travelled as `wire_dtype`, computed in f32.
void reduce_wire_into(float* target, const void* wire, int64_t elements, int wire_dtype, int reduce, double divisor);

// The instruction set in use: "baseline", "avx2" or "avx512". See kernels.h.
const char* instruction_set();

}  // namespace tfdist
#endif  // TFDIST_COMMON_REDUCE_H_

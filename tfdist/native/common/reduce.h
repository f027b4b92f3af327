// Arithmetic on raw arrays: element sizes, reductions, packing with a scale.
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

// target[i] = (target[i] (+, min, max, *) source[i]) / divisor; mean adds. Integers are divided toward zero.
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

// target[i] = (target[i] (+, min, max, *) wire[i]) / divisor, in f32.
void reduce_wire_into(float* target, const void* wire, int64_t elements, int wire_dtype, int reduce, double divisor);

}  // namespace tfdist
#endif  // TFDIST_COMMON_REDUCE_H_

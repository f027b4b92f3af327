// Arithmetic on raw arrays: element sizes, reductions, weighted packing and unpacking.
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

// target[i] = target[i] (+, min, max, *) source[i]. Mean adds here and divides in `unpack`.
// bf16 and f16 are computed in f32 and rounded to nearest even.
void reduce_into(void* target, const void* source, int64_t elements, int dtype, int reduce);

// target[i] = weight * source[i]; a weight of 0 writes zeros whatever the source holds.
void pack_weighted(void* target, const void* source, int64_t elements, int dtype, double weight);

// target[i] = source[i] / divisor, integers truncated toward zero; target may be source.
void unpack_divided(void* target, const void* source, int64_t elements, int dtype, double divisor);

void store_scalar(void* target, int dtype, double value);
double load_scalar(const void* source, int dtype);

}  // namespace tfdist
#endif  // TFDIST_COMMON_REDUCE_H_

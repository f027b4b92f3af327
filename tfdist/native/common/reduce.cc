#include "common/reduce.h"

#include <cstring>

#include "common/kernels.h"

namespace tfdist {
namespace {

// The table's row of an element type; kElements for a type that does not reduce.
Element row_of(int dtype) {
  switch (dtype) {
    case TFDIST_FLOAT32: return kFloat32;
    case TFDIST_FLOAT64: return kFloat64;
    case TFDIST_BFLOAT16: return kBFloat16;
    case TFDIST_FLOAT16: return kFloat16;
    case TFDIST_INT32: return kInt32;
    case TFDIST_INT64: return kInt64;
    default: return kElements;
  }
}

Operator column_of(int reduce, double divisor) {
  if (divisor != 1) return kAddDivide;
  switch (reduce) {
    case TFDIST_MIN: return kMinimum;
    case TFDIST_MAX: return kMaximum;
    case TFDIST_PRODUCT: return kMultiply;
    default: return kAdd;
  }
}

}  // namespace

size_t element_size(int dtype) {
  switch (dtype) {
    case TFDIST_BYTE: return 1;
    case TFDIST_BFLOAT16:
    case TFDIST_FLOAT16: return 2;
    case TFDIST_FLOAT32:
    case TFDIST_INT32: return 4;
    case TFDIST_FLOAT64:
    case TFDIST_INT64: return 8;
    default: return 0;
  }
}

bool can_reduce(int dtype, int reduce) {
  return dtype > TFDIST_BYTE && dtype <= TFDIST_INT64 && reduce >= TFDIST_SUM && reduce <= TFDIST_PRODUCT;
}

bool is_floating(int dtype) { return dtype >= TFDIST_FLOAT32 && dtype <= TFDIST_FLOAT16; }

bool can_travel_as(int dtype, int wire_dtype) {
  return dtype == TFDIST_FLOAT32 && (wire_dtype == TFDIST_BFLOAT16 || wire_dtype == TFDIST_FLOAT16);
}

const char* instruction_set() { return kernels().name; }

void reduce_into(void* target, const void* source, int64_t elements, int dtype, int reduce, double divisor) {
  if (row_of(dtype) == kElements) return;
  kernels().reduce[row_of(dtype)][column_of(reduce, divisor)](target, source, elements, divisor);
}

void pack_scaled(void* target, const void* source, int64_t elements, int dtype, double scale) {
  if (scale == 0) {
    std::memset(target, 0, static_cast<size_t>(elements) * element_size(dtype));
    return;
  }
  if (row_of(dtype) == kElements) return;
  kernels().pack[row_of(dtype)](target, source, elements, scale);
}

void narrow(void* wire, float* values, int64_t elements, int wire_dtype) {
  if (!can_travel_as(TFDIST_FLOAT32, wire_dtype)) return;
  kernels().narrow[row_of(wire_dtype)](wire, values, elements);
}

void widen(float* target, const void* wire, int64_t elements, int wire_dtype) {
  if (!can_travel_as(TFDIST_FLOAT32, wire_dtype)) return;
  kernels().widen[row_of(wire_dtype)](target, wire, elements);
}

void reduce_wire_into(float* target, const void* wire, int64_t elements, int wire_dtype, int reduce, double divisor) {
  if (!can_travel_as(TFDIST_FLOAT32, wire_dtype)) return;
  kernels().reduce_wire[row_of(wire_dtype)][column_of(reduce, divisor)](target, wire, elements, divisor);
}

}  // namespace tfdist

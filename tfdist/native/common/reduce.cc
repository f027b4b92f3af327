#include "common/reduce.h"

#include <cstring>
#include <type_traits>

#include "common/half.h"

namespace tfdist {
namespace {

// How a stored element is computed with: itself, or float for the 16-bit types.
template <typename T>
struct Arithmetic {
  using Value = T;
  static Value load(T x) { return x; }
  static T store(Value x) { return x; }
};
template <typename Half>
struct HalfArithmetic {
  using Value = float;
  static Value load(Half x) { return static_cast<float>(x); }
  static Half store(Value x) { return Half::from(x); }
};
template <>
struct Arithmetic<BFloat16> : HalfArithmetic<BFloat16> {};
template <>
struct Arithmetic<Float16> : HalfArithmetic<Float16> {};

// Integers wrap around on overflow, as NumPy's do; signed overflow would be undefined.
template <typename V>
struct Wrapping {
  static V add(V a, V b) { return a + b; }
  static V multiply(V a, V b) { return a * b; }
};
template <typename V, typename U>
struct WrappingInteger {
  static V add(V a, V b) { return static_cast<V>(static_cast<U>(a) + static_cast<U>(b)); }
  static V multiply(V a, V b) { return static_cast<V>(static_cast<U>(a) * static_cast<U>(b)); }
};
template <>
struct Wrapping<int32_t> : WrappingInteger<int32_t, uint32_t> {};
template <>
struct Wrapping<int64_t> : WrappingInteger<int64_t, uint64_t> {};

// min and max hand a NaN on, so that it is seen on every rank.
template <typename V>
V minimum(V a, V b) { return (a < b || a != a) ? a : b; }
template <typename V>
V maximum(V a, V b) { return (a > b || a != a) ? a : b; }

template <typename T, typename S, typename Function>
void combine(T* __restrict target, const S* __restrict source, int64_t n, Function function) {
  using A = Arithmetic<T>;
  for (int64_t i = 0; i < n; ++i) target[i] = A::store(function(A::load(target[i]), Arithmetic<S>::load(source[i])));
}

template <typename T, typename S>
void reduce_typed(T* target, const S* source, int64_t n, int reduce, double divisor) {
  using V = typename Arithmetic<T>::Value;
  if (divisor != 1) {
    const V d = static_cast<V>(divisor);
    return combine(target, source, n, [d](V a, V b) { return static_cast<V>(Wrapping<V>::add(a, b) / d); });
  }
  switch (reduce) {
    case TFDIST_MIN: return combine(target, source, n, minimum<V>);
    case TFDIST_MAX: return combine(target, source, n, maximum<V>);
    case TFDIST_PRODUCT: return combine(target, source, n, Wrapping<V>::multiply);
    default: return combine(target, source, n, Wrapping<V>::add);
  }
}

template <typename T>
void pack_typed(T* target, const T* source, int64_t n, double scale) {
  using A = Arithmetic<T>;
  const auto s = static_cast<typename A::Value>(scale);
  for (int64_t i = 0; i < n; ++i) target[i] = A::store(Wrapping<typename A::Value>::multiply(s, A::load(source[i])));
}

// Calls `visit` with a null pointer of the element type of `dtype`.
template <typename Visitor>
void with_type(int dtype, Visitor visit) {
  switch (dtype) {
    case TFDIST_FLOAT32: return visit(static_cast<float*>(nullptr));
    case TFDIST_FLOAT64: return visit(static_cast<double*>(nullptr));
    case TFDIST_BFLOAT16: return visit(static_cast<BFloat16*>(nullptr));
    case TFDIST_FLOAT16: return visit(static_cast<Float16*>(nullptr));
    case TFDIST_INT32: return visit(static_cast<int32_t*>(nullptr));
    case TFDIST_INT64: return visit(static_cast<int64_t*>(nullptr));
    default: return;
  }
}

template <typename Visitor>
void with_half(int wire_dtype, Visitor visit) {
  if (wire_dtype == TFDIST_BFLOAT16) visit(static_cast<BFloat16*>(nullptr));
  if (wire_dtype == TFDIST_FLOAT16) visit(static_cast<Float16*>(nullptr));
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

void reduce_into(void* target, const void* source, int64_t elements, int dtype, int reduce, double divisor) {
  with_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    reduce_typed(static_cast<T*>(target), static_cast<const T*>(source), elements, reduce, divisor);
  });
}

void pack_scaled(void* target, const void* source, int64_t elements, int dtype, double scale) {
  if (scale == 0) {
    std::memset(target, 0, static_cast<size_t>(elements) * element_size(dtype));
    return;
  }
  with_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    pack_typed(static_cast<T*>(target), static_cast<const T*>(source), elements, scale);
  });
}

bool can_travel_as(int dtype, int wire_dtype) {
  return dtype == TFDIST_FLOAT32 && (wire_dtype == TFDIST_BFLOAT16 || wire_dtype == TFDIST_FLOAT16);
}

void narrow(void* wire, float* values, int64_t elements, int wire_dtype) {
  with_half(wire_dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    auto* halves = static_cast<T*>(wire);
    for (int64_t i = 0; i < elements; ++i) {
      halves[i] = T::from(values[i]);
      values[i] = static_cast<float>(halves[i]);
    }
  });
}

void widen(float* target, const void* wire, int64_t elements, int wire_dtype) {
  with_half(wire_dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto* halves = static_cast<const T*>(wire);
    for (int64_t i = 0; i < elements; ++i) target[i] = static_cast<float>(halves[i]);
  });
}

void reduce_wire_into(float* target, const void* wire, int64_t elements, int wire_dtype, int reduce, double divisor) {
  with_half(wire_dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    reduce_typed(target, static_cast<const T*>(wire), elements, reduce, divisor);
  });
}

}  // namespace tfdist

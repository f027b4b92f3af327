// How a stored type is computed with, and the operators of a reduction, on one element or one register of floats.
//
// For loops.h alone: every function is inlined and compiled for the including source's TFDIST_TARGET.
#ifndef TFDIST_COMMON_ARITHMETIC_H_
#define TFDIST_COMMON_ARITHMETIC_H_

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "common/half.h"

#define TFDIST_STEP TFDIST_INLINE TFDIST_TARGET

namespace tfdist {
namespace {

// Reads and writes element `i` of an array of any alignment.
template <typename T>
TFDIST_STEP T element_at(const char* array, int64_t i) {
  T value;
  std::memcpy(&value, array + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}
template <typename T>
TFDIST_STEP void set_element(char* array, int64_t i, T value) {
  std::memcpy(array + i * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
}

// What a stored element is computed in: itself, or float for the 16-bit types.
template <typename T>
struct Arithmetic {
  using Value = T;
  static TFDIST_STEP T load(T x) { return x; }
  static TFDIST_STEP T store(T x) { return x; }
};
template <typename Half>
struct HalfArithmetic {
  using Value = float;
  static TFDIST_STEP float load(Half x) { return static_cast<float>(x); }
  static TFDIST_STEP Half store(float x) { return Half::from(x); }
};
template <>
struct Arithmetic<BFloat16> : HalfArithmetic<BFloat16> {};
template <>
struct Arithmetic<Float16> : HalfArithmetic<Float16> {};

template <typename V>
TFDIST_STEP V add(V a, V b) { return a + b; }
template <typename V>
TFDIST_STEP V multiply(V a, V b) { return a * b; }
template <typename V>
TFDIST_STEP V divide(V a, V b) { return a / b; }

// Integers wrap around on overflow, as NumPy's do; signed overflow would be undefined.
template <>
TFDIST_STEP int32_t add(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
}
template <>
TFDIST_STEP int64_t add(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}
template <>
TFDIST_STEP int32_t multiply(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) * static_cast<uint32_t>(b));
}
template <>
TFDIST_STEP int64_t multiply(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
}
// Doubles hold the quotient of two 32-bit integers finely enough to truncate it, and their division vectorises.
template <>
TFDIST_STEP int32_t divide(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<double>(a) / static_cast<double>(b));
}

// The operators: a the element accumulated into, b the one that arrived, d the divisor.
struct Add {
  template <typename V>
  static TFDIST_STEP V apply(V a, V b, V) { return add(a, b); }
};
struct AddDivide {
  template <typename V>
  static TFDIST_STEP V apply(V a, V b, V d) { return divide(add(a, b), d); }
};
struct Multiply {
  template <typename V>
  static TFDIST_STEP V apply(V a, V b, V) { return multiply(a, b); }
};
// What Minimum and Maximum need to know of a type: its bits, and the NaN they hand on (of integers not used).
template <typename V, size_t = sizeof(V)>
struct Bits {
  using Type = V;
  static TFDIST_STEP V nan() { return V{}; }
};
template <>
struct Bits<float> {
  using Type = uint32_t;
  static TFDIST_STEP float nan() { return std::numeric_limits<float>::quiet_NaN(); }
};
template <>
struct Bits<double> {
  using Type = uint64_t;
  static TFDIST_STEP double nan() { return std::numeric_limits<double>::quiet_NaN(); }
};
template <typename V>
struct Bits<V, 32> {  // a register of floats; naming its type here would lose its attributes
  using Type = int64_t __attribute__((vector_size(32)));
  static TFDIST_STEP V nan() { return V{} + std::numeric_limits<float>::quiet_NaN(); }
};
template <typename V>
TFDIST_STEP typename Bits<V>::Type bits_of(V x) {
  typename Bits<V>::Type bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
template <typename V>
TFDIST_STEP V value_of(typename Bits<V>::Type bits) {
  V x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
// Ranks that exchange arrays hold the operands in either order and must end with equal bits: of two zeros -0 is the least,
// and a NaN on either side becomes the one NaN. (Other equals are equal bit for bit.)
struct Minimum {
  template <typename V>
  static TFDIST_STEP V apply(V a, V b, V) {
    if constexpr (std::is_integral_v<V>) return a < b ? a : b;
    const V equal = value_of<V>(bits_of(a) | bits_of(b));
    return a < b ? a : b < a ? b : a == b ? equal : Bits<V>::nan();
  }
};
struct Maximum {
  template <typename V>
  static TFDIST_STEP V apply(V a, V b, V) {
    if constexpr (std::is_integral_v<V>) return a > b ? a : b;
    const V equal = value_of<V>(bits_of(a) & bits_of(b));
    return a > b ? a : b > a ? b : a == b ? equal : Bits<V>::nan();
  }
};

// Two bf16 in one word, which spares the loop widening and narrowing registers; either order of bytes will do.
template <typename Op>
TFDIST_STEP uint32_t apply_to_pair(uint32_t a, uint32_t b, float d) {
  const float first = Op::apply(bits_to_float(a << 16), bits_to_float(b << 16), d);
  const float second = Op::apply(bits_to_float(a & 0xffff0000u), bits_to_float(b & 0xffff0000u), d);
  return (BFloat16::round(first) >> 16) | (BFloat16::round(second) & 0xffff0000u);
}

}  // namespace
}  // namespace tfdist
#endif  // TFDIST_COMMON_ARITHMETIC_H_

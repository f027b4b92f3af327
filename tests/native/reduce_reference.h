// What common/reduce.h promises, one element at a time and written without its tricks.
#ifndef TFDIST_TESTS_REDUCE_REFERENCE_H_
#define TFDIST_TESTS_REDUCE_REFERENCE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "tfdist.h"

namespace reference {

template <typename To, typename From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "equal sizes");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// The layout of a 16-bit float: sign, exponent, mantissa.
struct Format {
  int mantissa_bits;
  int least_exponent;  // of a normal number
  int exponent_mask() const { return (1 << (15 - mantissa_bits)) - 1; }
  int infinity() const { return exponent_mask() << mantissa_bits; }
};
constexpr Format kBFloat16{7, -126}, kFloat16{10, -14};

inline Format format_of(int dtype) { return dtype == TFDIST_BFLOAT16 ? kBFloat16 : kFloat16; }

// By the definition of the format: nearest multiple of the step at the value's exponent, ties to even.
inline uint16_t narrow(float value, Format format) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const int sign = static_cast<int>(bits >> 31) << 15;
  if (std::isnan(value)) {
    const int mantissa = static_cast<int>((bits & 0x7fffffu) >> (23 - format.mantissa_bits));
    return static_cast<uint16_t>(sign | format.infinity() | (1 << (format.mantissa_bits - 1)) | mantissa);
  }
  const double magnitude = std::fabs(static_cast<double>(value));
  if (std::isinf(value)) return static_cast<uint16_t>(sign | format.infinity());
  const int exponent = magnitude == 0 ? format.least_exponent : std::max(std::ilogb(magnitude), format.least_exponent);
  const double steps = std::nearbyint(std::ldexp(magnitude, format.mantissa_bits - exponent));
  // A normal number has 2^mantissa_bits steps or more; one too many carries into the exponent by itself.
  const int field = static_cast<int>(steps) + ((exponent - format.least_exponent) << format.mantissa_bits);
  return static_cast<uint16_t>(sign | std::min(field, format.infinity()));
}

inline float widen(uint16_t half, Format format) {
  const int exponent = (half >> format.mantissa_bits) & format.exponent_mask();
  const int mantissa = half & ((1 << format.mantissa_bits) - 1);
  const uint32_t sign = static_cast<uint32_t>(half >> 15) << 31;
  if (exponent == format.exponent_mask()) {
    // Converting an f16 makes a NaN quiet; a bf16 is the upper half of a float, whatever it holds.
    const uint32_t quiet = format.mantissa_bits == 10 && mantissa != 0 ? 0x400000u : 0;
    return bit_cast<float>(sign | 0x7f800000u | static_cast<uint32_t>(mantissa << (23 - format.mantissa_bits)) | quiet);
  }
  const int steps = mantissa | (exponent > 0 ? 1 << format.mantissa_bits : 0);
  const int scale = format.least_exponent - format.mantissa_bits + std::max(exponent - 1, 0);
  const float magnitude = static_cast<float>(std::ldexp(steps, scale));
  return sign != 0 ? -magnitude : magnitude;
}

// Integers wrap and are divided toward zero; min and max order the zeros by sign, and a NaN on either side becomes the one.
template <typename V>
V combine(V a, V b, int reduce, double divisor) {
  using Limits = std::numeric_limits<V>;
  if constexpr (Limits::is_integer) {
    using U = std::make_unsigned_t<V>;
    const V sum = static_cast<V>(static_cast<U>(a) + static_cast<U>(b));
    if (divisor != 1) return sum / static_cast<V>(divisor);
    if (reduce == TFDIST_PRODUCT) return static_cast<V>(static_cast<U>(a) * static_cast<U>(b));
    if (reduce == TFDIST_SUM || reduce == TFDIST_MEAN) return sum;
  } else {
    const V sum = a + b;
    if (divisor != 1) return sum / static_cast<V>(divisor);
    if (reduce == TFDIST_PRODUCT) return a * b;
    if (reduce == TFDIST_SUM || reduce == TFDIST_MEAN) return sum;
    if (std::isnan(a) || std::isnan(b)) return Limits::quiet_NaN();
    if (a == b) return (std::signbit(a) == (reduce == TFDIST_MIN)) ? a : b;
  }
  if (reduce == TFDIST_MIN) return a < b ? a : b;
  return a > b ? a : b;
}

}  // namespace reference
#endif  // TFDIST_TESTS_REDUCE_REFERENCE_H_

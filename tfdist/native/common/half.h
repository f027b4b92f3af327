// bfloat16 and IEEE binary16 as storage: exact widening to float, narrowing by round to nearest even.
#ifndef TFDIST_COMMON_HALF_H_
#define TFDIST_COMMON_HALF_H_

#include <cstdint>
#include <cstring>

namespace tfdist {

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

struct BFloat16 {
  uint16_t bits;
  explicit operator float() const { return bits_to_float(uint32_t{bits} << 16); }
  static BFloat16 from(float value) {
    uint32_t b = float_to_bits(value);
    if ((b & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((b >> 16) | 0x40u)};  // keep NaN a NaN
    return {static_cast<uint16_t>((b + 0x7fffu + ((b >> 16) & 1u)) >> 16)};
  }
};

struct Float16 {
  uint16_t bits;
  explicit operator float() const {
    uint32_t sign = uint32_t{bits & 0x8000u} << 16, exponent = (bits >> 10) & 0x1fu, mantissa = bits & 0x3ffu;
    if (exponent == 0x1f) return bits_to_float(sign | 0x7f800000u | (mantissa << 13));
    if (exponent != 0) return bits_to_float(sign | ((exponent + 112u) << 23) | (mantissa << 13));
    float subnormal = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24
    return sign ? -subnormal : subnormal;
  }
  static Float16 from(float value) {
    uint32_t b = float_to_bits(value), sign = (b >> 16) & 0x8000u, magnitude = b & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu))};
    if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds past 65504
    if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 makes the FPU round at bit 2^-24
      float rounded = bits_to_float(magnitude) + 0.5f;
      return {static_cast<uint16_t>(sign | (float_to_bits(rounded) - 0x3f000000u))};
    }
    uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u;
    return {static_cast<uint16_t>(sign | (rounded >> 13))};
  }
};

}  // namespace tfdist
#endif  // TFDIST_COMMON_HALF_H_

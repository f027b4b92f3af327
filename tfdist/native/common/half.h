// bfloat16 and IEEE binary16 as storage: exact widening to float, narrowing by round to nearest even.
//
// Selections instead of branches, so that the loops over these vectorise; a thread that flushes subnormals to zero gets
// the same bits. A NaN becomes a quiet one with the same leading bits: what the F16C instructions make of it.
#ifndef TFDIST_COMMON_HALF_H_
#define TFDIST_COMMON_HALF_H_

#include <cstdint>
#include <cstring>

// Inlined into callers that are compiled for a newer instruction set, and compiled for it there.
#define TFDIST_INLINE inline __attribute__((always_inline))

namespace tfdist {

TFDIST_INLINE float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

TFDIST_INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// condition ? a : b by masks, which no compiler turns back into a branch that would keep a loop from vectorising.
TFDIST_INLINE uint32_t select(bool condition, uint32_t a, uint32_t b) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return (a & mask) | (b & ~mask);
}

struct BFloat16 {
  uint16_t bits;
  TFDIST_INLINE explicit operator float() const { return bits_to_float(uint32_t{bits} << 16); }
  TFDIST_INLINE static BFloat16 from(float value) { return {static_cast<uint16_t>(round(value) >> 16)}; }
  // The rounded value in the upper 16 bits, anything below.
  TFDIST_INLINE static uint32_t round(float value) {
    const uint32_t b = float_to_bits(value), nan = 0u - static_cast<uint32_t>(value != value);
    const uint32_t half_a_step = 0x7fffu + ((b >> 16) & 1u);  // less one on even values: a tie stays there
    return (b + (half_a_step & ~nan)) | (0x400000u & nan);
  }
};

struct Float16 {
  uint16_t bits;
  TFDIST_INLINE explicit operator float() const {
    const uint32_t magnitude = bits & 0x7fffu;
    const auto m = static_cast<int32_t>(magnitude);  // comparisons of signed integers are what SSE2 has
    const uint32_t normal = (magnitude << 13) + (112u << 23);
    const uint32_t subnormal = float_to_bits(static_cast<float>(m) * 5.9604644775390625e-8f);  // 2^-24
    const uint32_t infinity = (magnitude << 13) | 0x7f800000u;
    const uint32_t special = infinity | select(m > 0x7c00, 0x400000u, 0);
    const uint32_t value = select(m >= 0x7c00, special, select(m < 0x400, subnormal, normal));
    return bits_to_float(value | ((bits & 0x8000u) << 16));
  }
  // The half is made in the upper 16 bits: the selections stay 32 bits wide, which vectorises better.
  TFDIST_INLINE static Float16 from(float value) {
    const uint32_t b = float_to_bits(value), magnitude = b & 0x7fffffffu;
    const auto m = static_cast<int32_t>(magnitude);
    const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) << 3;
    // Adding 0.5 makes the FPU round at bit 2^-24, the last of a subnormal.
    const uint32_t subnormal = (float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u) << 16;
    const uint32_t finite = select(m < 0x38800000, subnormal, normal);
    const uint32_t ordered = select(m >= 0x477ff000, 0x7c000000u, finite);  // rounds past 65504
    const uint32_t nan = 0x7e000000u | ((magnitude << 3) & 0x3ff0000u);
    return {static_cast<uint16_t>((select(m > 0x7f800000, nan, ordered) | (b & 0x80000000u)) >> 16)};
  }
};

}  // namespace tfdist
#endif  // TFDIST_COMMON_HALF_H_
